"""Strict interchange-intervention training of a network with MLPs on the task of the duplicate."""

from dataclasses import replace

import pytest
import torch

from actkit.core.edits.edit import swap
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Part
from actkit.trace._causal import agreement, pairs_of
from actkit.trace._known_circuit import KnownCircuit
from actkit.trace.circuits.interpbench._wired import wired_duplicate, wired_pointer
from actkit.trace.edges.eap import EAP
from actkit.trace.nodes.patch import Patch
from actkit.trace.training.siit import SIIT, _step
from actkit.worlds.causal import Causal
from actkit.worlds.programs import duplicate, fraction, pointer
from actkit.worlds.toy_transformer import toy
from tests._evidence import Evidence

PLACES = {"seen again": [Part("z.0", head=1)], "answer": [Part("z.1", head=2)]}
BOTH = ("heads", "mlps")


def untrained(program: Causal) -> Model:
    return Model(toy(program.vocabulary, 2, 4, 32, program.length, mlp=64, scale=True))


def trained(strict: float, num_steps: int) -> KnownCircuit:
    program = duplicate()
    model = untrained(program)
    SIIT(rate=1e-2, batch_size=64, num_steps=num_steps, strict=strict).fit(model, program, PLACES)
    return KnownCircuit(model, program, PLACES)


def test_programs_compute_what_they_say() -> None:
    repeated = torch.tensor([[6, 3, 1, 3, 0, 7], [6, 2, 2, 0, 1, 7]])
    assert duplicate()(repeated)["seen again"].tolist() == [3, 2]
    assert duplicate().answers(repeated).tolist() == [3, 2]
    elsewhere = {"seen again": torch.tensor([4, 1])}
    assert duplicate().answers(repeated, elsewhere).tolist() == [0, 2]
    letters = torch.tensor([[0, 0, 1, 2, 0, 5], [0, 0, 1, 2, 1, 5]])
    assert fraction().answers(letters).tolist() == [4, 3]
    assert pointer(4, 3).answers(torch.tensor([[1, 3, 0, 2, 0]])).tolist() == [2]
    pairs = pairs_of(duplicate(), 33)
    assert len(pairs) == 33
    assert (torch.as_tensor(pairs.answers) != torch.as_tensor(pairs.wrong)).all()


def test_a_wired_network_agrees_with_its_program_and_not_with_another_head() -> None:
    circuit = wired_duplicate(seed=3)
    model, program, places = circuit.model, circuit.program, circuit.places
    found = agreement(model, program, places, ("heads",))
    assert (found.behaviour, found.iit, found.strict) == (1, 1, 1)
    moved = {**places, "answer": places["seen again"]}
    wrong = agreement(model, program, moved, ("heads",))
    assert wrong.iit < 0.6
    assert wrong.strict < 0.6


def test_a_step_is_the_three_cross_entropies() -> None:
    """On a wired network, by hand: a run of each side, and one for each intervention."""
    circuit = wired_pointer(seed=1)
    model, program, places = circuit.model, circuit.program, circuit.places
    generator = torch.Generator().manual_seed(5)
    base, source = program.draw(7, generator), program.draw(7, generator)
    inside, outside = places["hop 1"], Part("z.1", head=(places["answer"][0].head or 0) ^ 1)
    losses, right = _step(model, program, base, source, ("hop 1", inside, outside))

    def loss(swapped: list[Part], tokens: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        rec = model.run(source, record=[p.site for p in swapped] or "z.0")
        edits = [swap(p.site, rec, p.where) for p in swapped]
        logits = model.run(tokens, edits=edits, logits=True).logits
        return -logits[:, -1].log_softmax(-1)[torch.arange(7), wanted].mean()

    hop = program(source)["hop 1"]
    bare = [loss([], t, program.answers(t)) for t in (base, source)]
    expected = torch.stack(
        [
            torch.stack(bare).mean(),
            loss(list(inside), base, base.gather(1, hop[:, None])[:, 0]),
            loss([outside], base, program.answers(base)),
        ]
    )
    torch.testing.assert_close(losses, expected)
    assert right.tolist() == [1, 1, 1]


def test_bad_places_are_refused() -> None:
    program = fraction()
    model = Model(toy(program.vocabulary, 1, 1))
    with pytest.raises(InputError, match=r"variables must be of is x, answer, got \['z'\]"):
        SIIT().fit(model, program, {"z": [Part("z.0", head=0)]})
    with pytest.raises(InputError, match=r"places must be .* got \['z.0.3'\]"):
        SIIT().fit(model, program, {"is x": [Part("z.0", head=3)]})
    with pytest.raises(InputError, match=r"variables must be .* got \[\]"):
        SIIT().fit(model, program, {})
    with pytest.raises(InputError, match="got all 1 in places"):
        SIIT(parts=("heads",)).fit(model, program, {"is x": [Part("z.0", head=0)]})
    same = replace(program, draw=lambda num, _: torch.zeros(num, 6).long())
    with pytest.raises(InputError, match="answers that differ, got 0 of 4"):
        pairs_of(same, 4)
    with pytest.raises(InputError, match="variables must be"):
        program.answers(torch.zeros(1, 6).long(), {"is y": torch.zeros(1)})


@pytest.mark.slow
@pytest.mark.paper("interpbench")
def test_the_strict_term_keeps_all_other_parts_out(evidence: Evidence) -> None:
    circuit = trained(strict=0.4, num_steps=400)
    found = agreement(circuit.model, circuit.program, PLACES)
    evidence("behaviour accuracy", measured=found.behaviour, at_least=0.98)
    evidence("accuracy under interchange of a variable", measured=found.iit, at_least=0.98)
    evidence("accuracy under interchange of another part", measured=found.strict, at_least=0.98)
    for ablation in ("resample", "mean"):
        heads, inside = circuit.effects(ablation), circuit.inside
        mlps = circuit.effects(ablation, "mlps")
        out = max(heads[~inside].max(), mlps.max())
        evidence(f"largest {ablation} effect outside (accuracy)", measured=out, at_most=0.05)
        least = heads[inside].min()
        evidence(f"least {ablation} effect in the circuit", measured=least, at_least=0.3)
    for what, localizer in (("heads by patching", Patch("heads")), ("edges by EAP", EAP(False))):
        area = circuit.auc(localizer(circuit.model, circuit.task()))
        evidence(f"{what}, area under the ROC curve", measured=area, at_least=0.9)

    plain = trained(strict=0.0, num_steps=200)
    effects = plain.effects()[~plain.inside].max(), plain.effects(parts="mlps").max()
    evidence("without the strict term, largest effect outside", measured=max(effects), at_least=0.1)
