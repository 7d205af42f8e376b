"""Circuit modulation: what is added by hand, and a planted circuit against random components.

Shapes: N pairs, F neurons, H heads, K head width.
"""

from typing import Any

import pytest
import torch

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.steer.vectors.circuit_modulate import CircuitModulate
from tests._evidence import Evidence
from tests.core import tiny
from tests.trace import _planted_emotion as planted

PAIRS = [("w1 w2 w3", "w1 w2 w4"), ("w9 w3", "w9 w4"), ("w5 w6 w3 w7", "w5 w6 w4 w7")]


def test_only_the_circuit_is_moved_and_by_its_own_difference() -> None:
    model = tiny.model()
    steerer = CircuitModulate([(1, 7), (1, 3), (2, 0)], [(0, 5)]).fit(model, PAIRS)
    assert {*steerer.differences_} == {"mlp_hidden.1", "mlp_hidden.2", "z.0"}
    for site, index in {"mlp_hidden.1": [3, 7], "mlp_hidden.2": [0], "z.0": [5]}.items():
        one_by_one = [
            model.run(plus, record=site)[site][0, -1] - model.run(minus, record=site)[site][0, -1]
            for plus, minus in PAIRS
        ]
        mean = torch.stack(one_by_one).mean(0)
        expected = torch.zeros_like(mean)
        expected[index] = mean[index]
        torch.testing.assert_close(steerer.differences_[site], expected, rtol=1e-4, atol=1e-5)


def test_edits_add_the_differences_from_the_last_token_on() -> None:
    model = tiny.model()
    steerer = CircuitModulate([(1, 7)], [(0, 5), (0, 2)]).fit(model, PAIRS)
    sites = ["z.0", "mlp_hidden.1"]
    bare = model.run("w1 w2 w5", record=sites)
    moved = model.run("w1 w2 w5", record=sites, edits=steerer.edits(2.0))
    torch.testing.assert_close(moved["z.0"][0, -1] - bare["z.0"][0, -1],
                               2 * steerer.differences_["z.0"])  # fmt: skip
    assert torch.equal(moved["z.0"][:, :-1], bare["z.0"][:, :-1])
    only = model.run("w1 w2 w5", record=sites, edits=CircuitModulate([(1, 7)]).fit(
        model, PAIRS).edits(2.0))  # fmt: skip
    torch.testing.assert_close(only["mlp_hidden.1"][0, -1] - bare["mlp_hidden.1"][0, -1],
                               2 * steerer.differences_["mlp_hidden.1"])  # fmt: skip


def test_strengths_of_rows_saving_and_fitting_again(tmp_path: Any) -> None:
    model = tiny.model()
    steerer = CircuitModulate([(1, 7)], [(0, 5)]).fit(model, PAIRS)

    def logits(edits: Any, prompts: Any = tiny.PROMPTS) -> torch.Tensor:
        found = model.run(prompts, edits=edits, logits=True).logits
        assert found is not None
        return found[:, -1]

    assert torch.equal(logits(steerer.edits(0.0)), logits([]))
    together = logits(steerer.edits(torch.tensor([0.0, 1.0, -0.5])))
    for row, strength in enumerate((0.0, 1.0, -0.5)):
        alone = logits(steerer.edits(strength), [tiny.PROMPTS[row]])
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)
    steerer.save(tmp_path / "edits.safetensors", model, 0.7)
    loaded = ak.load_edits(tmp_path / "edits.safetensors", model)
    assert torch.equal(logits(loaded), logits(steerer.edits(0.7)))
    before = dict(steerer.differences_)
    steerer.fit(model, PAIRS[:1])
    again = steerer.fit(model, PAIRS).differences_
    assert all(torch.equal(again[site], before[site]) for site in before)


@pytest.mark.parametrize(
    ("settings", "data", "said"),
    [
        ({}, PAIRS, "a circuit needs neurons or heads, got none"),
        ({"neurons": [(1, 80)]}, PAIRS, r"mlp_hidden.1 has components 0..79, got \[80\]"),
        ({"heads": [(0, -1)]}, PAIRS, r"z.0 has components 0..5, got \[-1\]"),
        ({"heads": [(0, 1)]}, {"positive": ["w1", "w2"], "negative": ["w3"]}, "got 2 and 1"),
    ],
    ids=["none", "neuron", "head", "unpaired"],
)
def test_what_is_no_circuit_is_refused(settings: dict[str, Any], data: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        CircuitModulate(**{"neurons": (), **settings}).fit(tiny.model(), data)


def test_a_block_that_is_not_there_is_refused() -> None:
    with pytest.raises(ak.errors.SiteError, match=r"mlp_hidden\.9"):
        CircuitModulate([(9, 0)]).fit(tiny.model(), PAIRS)


DRAWS = 119


@pytest.mark.paper("do-llms-feel-emotion")
def test_a_planted_circuit_moves_its_word_more_than_others(evidence: Evidence) -> None:
    """Random components, as many of each kind, get differences of their own in the same way."""
    model = Model(planted.planted())
    concept, others = 2, (0, 1, 3)
    pairs = [
        (planted.prompt(g, concept), planted.prompt(g, other)) for g in range(5) for other in others
    ]
    plain = [planted.prompt(g, None) for g in range(5, planted.CONTEXTS)]
    shown = [planted.prompt(g, concept) for g in range(5, planted.CONTEXTS)]

    def said(prompts: Any, edits: Any = ()) -> float:
        """Mean log-probability of the concept's word."""
        logits = model.run(prompts, edits=edits, logits=True).logits
        return float(logits[:, -1].log_softmax(-1)[:, 20 + concept].mean())

    bare, told = said(plain), said(shown)

    def moved(neurons: Any, heads: Any) -> float:
        steerer = CircuitModulate(neurons, heads).fit(model, pairs)
        return said(plain, steerer.edits(1.0)) - bare

    def lost(neurons: Any, heads: Any) -> float:
        where = [(f"mlp_hidden.{n}", ak.Where(units=i)) for n, i in neurons]
        where += [(f"z.{n}", ak.Where(heads=i)) for n, i in heads]
        return told - said(shown, [ak.scale(site, 0.0, at) for site, at in where])

    circuit = planted.neurons(concept), [planted.HEAD]
    draws = [random_circuit(seed) for seed in range(DRAWS)]
    for what, effect in (("gain of modulation", moved), ("loss of ablation", lost)):
        own = effect(*circuit)
        rivals = torch.tensor([effect(*draw) for draw in draws])
        p = (1 + int((rivals >= own).sum())) / (1 + DRAWS)
        evidence(f"{what} on the word, held-out contexts (nats)", measured=own, at_least=0.5)
        evidence(f"p of it among {DRAWS} random circuits", measured=p, at_most=0.01)


def random_circuit(seed: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """As many neurons and heads of anywhere else."""
    gen = torch.Generator().manual_seed(seed)
    own = {part for concept in range(planted.CONCEPTS) for part in planted.neurons(concept)}
    neurons = [divmod(int(i), 40) for i in torch.randperm(120, generator=gen)]
    heads = [divmod(int(i), 4) for i in torch.randperm(12, generator=gen)]
    return [n for n in neurons if n not in own][: planted.NEURONS], [
        h for h in heads if h != planted.HEAD
    ][:1]
