"""Ablation: against knocking out by hand, and what means and reference prompts do."""

from typing import Literal

import pytest
import torch

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Parts, Task
from actkit.trace._parts import as_parts
from actkit.trace.nodes.ablate import Ablate
from tests.core import tiny
from tests.trace import _relay

CLEAN = ["w1 w2 w3 w4 w5", "w6 w2 w3 w4 w7", "w8 w2 w3 w5 w7"]
CORRUPT = ["w1 w12 w3 w4 w5", "w6 w13 w3 w9 w7", "w7 w2 w3 w9 w7"]
REFERENCE = ["w21 w22 w23 w24 w25", "w31 w32 w33 w34 w35", "w2 w3 w4 w5 w6", "w1 w1 w1 w1 w1"]


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def task(m: Model) -> Task:
    logits = m.run(CLEAN, logits=True).logits
    return Task(CLEAN, CORRUPT, logits[:, -1].argmax(-1), logits[:, -1].argmin(-1))


@pytest.mark.parametrize("kind", ["mean", "zero", "resample"])
@pytest.mark.parametrize("given", [None, REFERENCE], ids=["corrupt", "reference"])
@pytest.mark.parametrize("parts", ["heads", Parts("attn_out", ("position",))], ids=str)
def test_scores_equal_knocking_out_by_hand(
    m: Model, task: Task, parts: str, kind: str, given: list[str] | None
) -> None:
    """The rows that are resampled from a reference are drawn as `torch.randint` draws them."""
    scores = Ablate(parts, kind, given)(m, task).values  # type: ignore[arg-type]
    trial = task.on(m)
    rec = m.run(given or CORRUPT, record=["z.*", "attn_out.*"])
    gen = torch.Generator().manual_seed(0)
    rows = torch.randint(4, (3,), generator=gen) if given else torch.arange(3)
    for index in torch.cartesian_prod(*map(torch.arange, scores.shape)).reshape(-1, scores.dim()):
        part = as_parts(parts).at(m, tuple(index.tolist()))
        x = rec[part.site]
        value = {
            "zero": 0 * x[rows],
            "mean": x.mean(0).expand(3, *x.shape[1:]),
            "resample": x[rows],
        }[kind]
        logits = m.run(CLEAN, edits=[ak.set(part.site, value, part.where)], logits=True).logits
        lost = trial.clean_values - trial.metric(logits[:, -1:])
        assert float(scores[tuple(index)]) == pytest.approx(float(lost.mean()), abs=1e-4), part


def test_only_heads_on_the_path_are_missed() -> None:
    """With the answer's logit w: zero takes w, the other pair's token 2 w, a mean of three w."""
    m, task = _relay.relay(), _relay.task()
    for kind, lost in (("zero", 1.0), ("resample", 2.0)):
        scores = Ablate(kind=kind)(m, task).values  # type: ignore[arg-type]
        for head in _relay.PATH:
            assert float(scores[head]) == pytest.approx(lost * _relay.WORTH, rel=1e-4)
            scores[head] = 0
        assert scores.abs().max() < 1e-6
    # the corrupt tokens 4, 0, 2 each have a third of w in the mean: w (1 - 1 / 3) is lost where
    # the wrong one's is gained, and pair 1, whose answer is 4, gets a third of it back
    mean = Ablate(kind="mean")(m, task).values
    expected = _relay.WORTH * torch.tensor([4 / 3, 3 / 3, 4 / 3]).mean()
    assert float(mean[1, 2]) == pytest.approx(float(expected), rel=1e-4)


def test_a_mean_over_the_prompt_itself_changes_nothing(m: Model, task: Task) -> None:
    one = task[[1]]
    assert Ablate(kind="mean", reference=one.clean)(m, one).values.abs().max() < 1e-5
    assert Ablate(kind="mean")(m, one).values.abs().max() > 1e-2


def test_bad_settings_are_refused(m: Model, task: Task) -> None:
    with pytest.raises(InputError, match="kind must be 'resample', 'mean' or 'zero', got 'noise'"):
        Ablate(kind="noise")  # type: ignore[arg-type]
    kinds: list[Literal["mean", "resample"]] = ["mean", "resample"]
    for kind in kinds:
        with pytest.raises(InputError, match=r"reference prompts must have 5 tokens .* got \[3\]"):
            Ablate(kind=kind, reference=["w1 w2 w3"])(m, task)
    uneven = Task([*CLEAN[:2], "w1 w2"], [*CORRUPT[:2], "w2 w2"], task.answers, task.wrong)
    with pytest.raises(InputError, match=r"prompts of one length, got \[2, 5\]"):
        Ablate(kind="mean")(m, uneven)
