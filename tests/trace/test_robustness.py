"""Patching in several ways: each against `Patch` or by hand, and their rank correlations."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import actkit as ak
from actkit.core.errors import InputError
from actkit.maths.statistics import rank_correlations
from actkit.model import Model
from actkit.trace import Task
from actkit.trace._robustness import (
    CHOICES,
    METRICS,
    Choice,
    noised,
    robustness,
)
from actkit.trace.nodes.patch import Patch
from tests.core import tiny

CLEAN = ["w1 w2 w3 w4 w5", "w6 w2 w3 w4 w7"]
CORRUPT = ["w1 w12 w3 w4 w5", "w6 w13 w3 w9 w7"]


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def task(m: Model) -> Task:
    logits = m.run(CLEAN, logits=True).logits
    return Task(CLEAN, CORRUPT, logits[:, -1].argmax(-1), logits[:, -1].argmin(-1))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(("parts", "window"), [("resid", 1), ("resid", 3)])
def test_replacing_is_what_patch_does(
    m: Model, task: Task, metric: str, direction: str, parts: str, window: int
) -> None:
    found = robustness(m, task, parts, [Choice("replace", metric, window, direction)])
    own = Task(task.clean, task.corrupt, task.answers, task.wrong, metric)
    expected = Patch(parts, direction, window)(m, own).values  # type: ignore[arg-type]
    torch.testing.assert_close(found.scores[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_noise_is_patched_by_hand(m: Model, task: Task, direction: str) -> None:
    trial = task.on(m)
    noise = noised(trial, sigma=2.0, seed=3)
    found = robustness(m, task, "attns", [Choice("noise", direction=direction)], sigma=2.0, seed=3)

    def mean(edits: list[ak.Edit]) -> float:
        logits = m.run(CLEAN, edits=edits, logits=True).logits
        return float(trial.metric(logits[:, -1:]).mean())

    for layer in range(tiny.LAYERS):
        site = f"attn_out.{layer}"
        noising = direction == "noise"
        source = m.run(CLEAN, record=site, edits=[noise] if noising else [])
        own, other = ([], [noise]) if noising else ([noise], [])
        got = mean([*own, ak.swap(site, source)])
        expected = (got - mean(own)) / (mean(other) - mean(own))
        assert found.scores[0, layer] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_noise_falls_on_the_subject_alone_in_units_of_the_embeddings(m: Model) -> None:
    clean = [" ".join(["w1"] * 40), " ".join(["w2"] * 30)]
    trial = Task(clean, [c.replace("w", "w3") for c in clean], metric=lambda x: x[:, -1, 0]).on(m)
    bare = m.run(clean, record="embeddings")

    def added(**settings: float) -> torch.Tensor:
        edits = [noised(trial, **settings)]  # type: ignore[arg-type]
        return m.run(clean, record="embeddings", edits=edits)["embeddings"] - bare["embeddings"]

    whole = added()
    valid = bare.rows.valid
    assert whole[~valid].abs().max() == 0
    spread = bare["embeddings"][valid].std()
    assert float(whole[valid].std() / spread) == pytest.approx(3, rel=0.05)
    torch.testing.assert_close(added(sigma=1.0) * 3, whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(added(), whole)
    assert not torch.allclose(added(seed=1), whole)
    assert not torch.allclose(whole[0, 10:], whole[1, 10:])
    few = m.run(clean, record="embeddings", edits=[noised(trial, ak.Where(tokens=2))])["embeddings"]
    changed = (few != bare["embeddings"]).any(-1)
    assert (changed.sum(-1) == 1).all()
    assert (bare.rows.position[changed] == 2).all()


def test_noise_falls_where_a_pair_differs(m: Model, task: Task) -> None:
    bare = m.run(CLEAN, record="embeddings")["embeddings"]
    noisy = m.run(CLEAN, record="embeddings", edits=[noised(task.on(m))])["embeddings"]
    expected = torch.tensor([[0, 1, 0, 0, 0], [0, 1, 0, 1, 0]]).bool()
    assert torch.equal((noisy != bare).any(-1), expected)


def test_correlations_are_those_of_ranks() -> None:
    values = tiny.uneven(4, 23, seed=1).round(decimals=1)  # with ties
    values[3] = 2.5
    found = rank_correlations(values)
    expected = np.asarray(spearmanr(values[:3], axis=1).statistic)
    np.testing.assert_allclose(found[:3, :3], expected, rtol=1e-10)
    assert found[3].isnan().all()


def test_the_table_names_each_way(m: Model, task: Task) -> None:
    assert len(set(CHOICES)) == 36
    found = robustness(m, task, "mlps", [Choice(), Choice("noise", "KL", 3, "noise")])
    assert found.scores.shape == (2, tiny.LAYERS)
    torch.testing.assert_close(found.correlations.diagonal(), torch.ones(2).double())
    lines = found.table().splitlines()
    assert lines[1].startswith(" 0  replace, logit difference, window 1, denoise")
    assert lines[2].split()[-1] == "1.00"


def test_what_does_not_fit_is_refused(m: Model, task: Task) -> None:
    with pytest.raises(InputError, match=r"corruption must be of .* got 'blur'"):
        Choice("blur")
    with pytest.raises(InputError, match="a window must be odd and at least 1, got 2"):
        Choice(window=2)
    with pytest.raises(InputError, match="direction must be"):
        Choice(direction="up")
    with pytest.raises(InputError, match="needs answers and wrong"):
        robustness(m, Task(CLEAN, CORRUPT, metric="KL"), "mlps", [Choice()])
    with pytest.raises(InputError, match="needs a choice, got none"):
        robustness(m, task, "mlps", [])
    same = Task(CLEAN, CLEAN, [1, 1], [2, 2])
    with pytest.raises(InputError, match="the pairs differ in no token"):
        robustness(m, same, "mlps", [Choice("noise")])
