"""Networks with known circuits: their effects by ablation, and the area under the ROC curve."""

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.errors import InputError
from actkit.trace import Scores
from actkit.trace._known_circuit import KnownCircuit
from actkit.trace.circuits.interpbench import interpbench, known_circuits
from actkit.trace.edges.eap import EAP
from actkit.trace.nodes.patch import Patch
from tests._evidence import Evidence


@pytest.fixture(
    scope="module", params=range(5), ids=["pointer2", "pointer3", "dup", "frac", "vote"]
)
def circuit(request: pytest.FixtureRequest) -> KnownCircuit:
    index: int = request.param
    return known_circuits()[index]


def scored(circuit: KnownCircuit, values: Tensor) -> Scores:
    names = [[str(i) for i in range(n)] for n in values.shape]
    return Scores(values, names, ("layer", "head"))


def test_the_area_counts_pairs_in_the_right_order(circuit: KnownCircuit) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(circuit.inside.shape, generator=generator).round(decimals=1) + 0.3
    ins, out = values.abs()[circuit.inside], values.abs()[~circuit.inside]
    ahead = (ins[:, None] > out).float() + 0.5 * (ins[:, None] == out).float()
    assert circuit.auc(scored(circuit, values)) == pytest.approx(float(ahead.mean()))


def test_heads_are_those_that_the_variables_need(circuit: KnownCircuit) -> None:
    """Ablating one of the circuit costs accuracy, ablating any other costs none."""
    for ablation, least in (("resample", 0.2), ("mean", 0.1)):
        effects = circuit.effects(ablation)
        assert effects[circuit.inside].min() > least
        assert effects[~circuit.inside].abs().max() < 0.02


@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_effects_equal_ablating_by_hand(circuit: KnownCircuit, ablation: str) -> None:
    generator = torch.Generator().manual_seed(3)
    base, other = (circuit.program.draw(33, generator) for _ in range(2))
    effects = circuit.effects(ablation, num=33, seed=3)
    wanted = circuit.program.answers(base)
    for layer, head in circuit.heads:
        z = circuit.model.run(other, record=f"z.{layer}")[f"z.{layer}"]
        new = z.mean(0).expand_as(z) if ablation == "mean" else z
        edits = [[], [ak.set(f"z.{layer}", new, ak.Where(heads=head))]]
        runs = [circuit.model.run(base, edits=e, logits=True).logits for e in edits]
        bare, cut = ((x[:, -1].argmax(-1) == wanted).float().mean() for x in runs if x is not None)
        assert effects[layer, head] == pytest.approx(float(bare - cut), abs=1e-6)


def test_edges_join_what_a_variable_reads_to_what_computes_it() -> None:
    pointer, _, _, fraction, vote = known_circuits()
    assert pointer.edges == {
        ("input", "head 0.3"),
        ("input", "head 1.2"),
        ("head 0.3", "head 1.2"),
        ("head 1.2", "logits"),
    }
    first, second = (f"head {layer}.{head}" for layer, head in sorted(fraction.heads))
    assert fraction.edges == {("input", first), (first, second), (second, "logits")}
    votes = [f"head {layer}.{head}" for layer, head in vote.heads]
    assert vote.edges == {e for v in votes for e in (("input", v), (v, "logits"))}


def test_seeds_wire_other_heads() -> None:
    found = [tuple(tuple(sorted(c.heads)) for c in known_circuits(s)) for s in (0, 1, 2, 3, 0)]
    assert len(set(found)) == 4
    assert found[0] == found[-1]


def test_bad_input_is_refused(circuit: KnownCircuit) -> None:
    with pytest.raises(InputError, match="ablation must be"):
        circuit.effects("zero")
    with pytest.raises(InputError, match=r"a reference must be bool of shape \(2, 9\)"):
        circuit.auc(scored(circuit, torch.zeros(2, 9)))
    with pytest.raises(InputError, match=r"scores must be of heads, .* got edges"):
        circuit.auc(EAP()(circuit.model, circuit.task(2)))
    with pytest.raises(InputError, match="along layer and position"):
        circuit.auc(Patch("resid")(circuit.model, circuit.task(2)))


@pytest.mark.paper("interpbench")
def test_methods_find_every_circuit_and_random_scores_none(evidence: Evidence) -> None:
    circuits = [c for seed in range(2) for c in known_circuits(seed)]
    for what, localizer in (("heads by patching", Patch("heads")), ("edges by EAP", EAP(False))):
        areas = [area for c in circuits for area in interpbench(localizer, [c]).values()]
        evidence(
            f"wired: {what}, least area under the ROC curve", measured=min(areas), at_least=0.9
        )
    generator = torch.Generator().manual_seed(0)
    drawn = [(c, torch.randn(c.inside.shape, generator=generator)) for c in circuits * 40]
    mean = torch.tensor([c.auc(scored(c, values)) for c, values in drawn]).mean()
    evidence("random scores of heads, mean area", measured=mean, equals=0.5, tolerance=0.1)
