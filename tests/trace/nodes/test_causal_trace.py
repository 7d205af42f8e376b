"""Causal tracing: against tracing by hand, severed paths, and a fact of a real network.

Shapes: B prompts, T tokens, D width, L layers.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.errors import EditError, InputError
from actkit.model import Model
from actkit.trace import Parts, Task
from actkit.trace.nodes.causal_trace import CausalTrace
from actkit.worlds.toy_transformer import reader
from tests._evidence import Evidence
from tests.core import tiny

CLEAN = ["w1 w2 w3 w4 w5 w6", "w7 w8 w9 w4 w5 w7"]
OTHER = ["w1 w12 w3 w4 w5 w6", "w7 w13 w9 w4 w5 w7"]
POST = Parts("resid_post", ("position",))


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def task(m: Model) -> Task:
    logits = m.run(CLEAN, logits=True).logits
    return Task(CLEAN, OTHER, logits[:, -1].argmax(-1), metric="probability")


def noise(m: Model, subject: list[int], seed: int) -> Tensor:
    """Return (1, T, D) noise of three standard deviations on two tokens."""
    embedded = m.run(CLEAN, record="embeddings")["embeddings"]
    sigma = embedded[:, subject].std()
    drawn = torch.randn(1, *embedded.shape[1:], generator=torch.Generator().manual_seed(seed))
    kept = torch.zeros(1, 6, 1)
    kept[:, subject] = 3 * sigma
    return drawn * kept


def probability(m: Model, task: Task, edits: list[ak.Edit]) -> float:
    logits = m.run(CLEAN, edits=edits, logits=True).logits
    p = logits[:, -1].softmax(-1).gather(1, torch.as_tensor(task.answers)[:, None])
    return float(p.mean())


@pytest.mark.parametrize(("part", "window"), [("resid_post", 1), ("mlp_out", 2), ("attn_out", 3)])
def test_scores_equal_tracing_by_hand(m: Model, task: Task, part: str, window: int) -> None:
    traced = CausalTrace([1, 2], Parts(part, ("position",)), window, draws=1, seed=4)
    with tiny.untouched(m.module):
        scores = traced(m, task)
    spoil = ak.add("embeddings", noise(m, [1, 2], 4))
    corrupted, clean = probability(m, task, [spoil]), m.run(CLEAN, record=f"{part}.*")
    beside = {1: (0, 1), 2: (-1, 1), 3: (-1, 2)}[window]
    for layer in range(tiny.LAYERS):
        around = [i for i in range(tiny.LAYERS) if beside[0] <= i - layer < beside[1]]
        for t in range(6):
            restore = [ak.swap(f"{part}.{i}", clean, ak.Where(tokens=t)) for i in around]
            expected = probability(m, task, [spoil, *restore]) - corrupted
            assert scores.values[layer, t] == pytest.approx(expected, abs=1e-6), (layer, t)
    assert (scores.values[:, 0] == 0).all()
    assert scores.facts["corrupted"] == pytest.approx(corrupted, abs=1e-6)
    assert scores.facts["clean"] == pytest.approx(probability(m, task, []), abs=1e-6)


@pytest.mark.parametrize("sever", ["mlp", "attn"])
@pytest.mark.parametrize("point", ["resid_pre", "resid_post"])
def test_a_severed_state_acts_without_what_reads_it(
    m: Model, task: Task, point: str, sever: Any
) -> None:
    parts = Parts(point, ("position",))
    scores = CausalTrace([1, 2], parts, sever=sever, draws=1, seed=2)(m, task).values
    spoil = ak.add("embeddings", noise(m, [1, 2], 2))
    corrupted, clean = probability(m, task, [spoil]), m.run(CLEAN, record=f"{point}.*")
    spoilt = m.run(CLEAN, record=f"{sever}_out.*", edits=[spoil])
    for layer, t in ((0, 2), (1, 2), (1, 5), (2, 5)):
        here = ak.Where(tokens=t)
        first = layer + (point == "resid_post")
        kept = [ak.swap(f"{sever}_out.{i}", spoilt, here) for i in range(first, tiny.LAYERS)]
        restore = ak.swap(f"{point}.{layer}", clean, here)
        expected = probability(m, task, [spoil, restore, *kept]) - corrupted
        assert scores[layer, t] == pytest.approx(expected, abs=1e-6), (layer, t)


def test_draws_are_averaged_and_subjects_may_lie_apart(m: Model, task: Task) -> None:
    one, both = (CausalTrace([1, 2], draws=n)(m, task).values for n in (1, 2))
    assert not torch.allclose(one, both)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[:, 1:3] = True
    for same in (slice(1, 3), (-5, -4), mask):
        torch.testing.assert_close(CausalTrace(same, draws=2)(m, task).values, both)
    mask[1] = mask[1].roll(1)
    apart = CausalTrace(mask, draws=1)(m, task).values
    assert (apart[:, 0] == 0).all()
    assert not torch.allclose(apart, one)


def test_restoring_the_last_state_of_all_brings_everything_back() -> None:
    toy = Model(reader(at=(1, 1)))
    pairs = torch.tensor([[3, 1, 2], [5, 1, 2]]), torch.tensor([[4, 1, 2], [2, 1, 2]])
    first = Task(*pairs, [3, 5], [4, 2])
    scores = CausalTrace(0, draws=3)(toy, first)
    lost = scores.facts["clean"] - scores.facts["corrupted"]
    expected = torch.tensor([[lost, 0, 0], [0, 0, lost]])  # the head of layer 1 moves it to the end
    torch.testing.assert_close(scores.values, expected, rtol=1e-5, atol=1e-6)


def test_bad_settings_are_refused(m: Model, task: Task) -> None:
    with pytest.raises(InputError, match="got 1, 0 and 3"):
        CausalTrace(1, draws=0)
    with pytest.raises(InputError, match="must be 'mlp', 'attn' or None, got 'both'"):
        CausalTrace(1, sever="both")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"single states .* got mlp_out"):
        CausalTrace(1, "mlp", sever="mlp")
    with pytest.raises(EditError, match="positions must be below 6"):
        CausalTrace(6)(m, task)
    with pytest.raises(InputError, match="every prompt needs a token of its subject"):
        CausalTrace([])(m, task)
    with pytest.raises(InputError, match=r"shape \(2, 6\), got \(1, 6\)"):
        CausalTrace(torch.ones(1, 6, dtype=torch.bool))(m, task)


@pytest.mark.slow
@pytest.mark.paper("locating-editing-factual-associations")
def test_a_capital_is_read_at_the_last_token_of_its_country(
    smollm2: Model, evidence: Evidence
) -> None:
    """Three draws of noise for ten: twenty times the largest effect elsewhere needs no more."""
    prompt, countries = "The capital city of {} is called", ("South Korea", "Saudi Arabia")
    clean, other = ([prompt.format(country)] for country in countries)
    task = Task(clean, other, [" Seoul"], metric="probability")
    scores = CausalTrace([4, 5], draws=3)(smollm2, task)
    evidence("probability of the capital that the noise takes away",
             measured=scores.facts["clean"] - scores.facts["corrupted"], at_least=0.3)  # fmt: skip
    effects_T = scores.values.sum(0)
    assert [word.strip() for word in scores.names[1][4:]] == ["South", "Korea", "is", "called"]
    evidence("AIE at the last subject token, summed over layers", measured=effects_T[5], at_least=4)
    evidence("its ratio to the largest of any other token before the last",
             measured=effects_T[5] / effects_T[[0, 1, 2, 3, 4, 6]].max(), at_least=4)  # fmt: skip
