"""Activation patching: against patching by hand, and the choices that change what it says.

Shapes: B pairs, L layers, T tokens.
"""

import pytest
import torch

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Parts, Task
from actkit.trace._parts import as_parts
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
    best, worst = logits[:, -1].argmax(-1), logits[:, -1].argmin(-1)
    return Task(CLEAN, CORRUPT, best, worst)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(
    "parts", ["resid", "attn", "mlp", "heads", Parts("k", ("position", "head")), "mlps"], ids=str
)
def test_scores_equal_patching_by_hand(m: Model, task: Task, parts: str, direction: str) -> None:
    scores = Patch(parts, direction)(m, task).values  # type: ignore[arg-type]
    sides = (CLEAN, CORRUPT) if direction == "denoise" else (CORRUPT, CLEAN)
    trial = task.on(m)

    def mean(edits: list[ak.Edit], prompts: list[str]) -> float:
        logits = m.run(prompts, edits=edits, logits=True).logits
        return float(trial.metric(logits[:, -1:].double()).mean())

    own, other = mean([], sides[1]), mean([], sides[0])
    for index in torch.cartesian_prod(*map(torch.arange, scores.shape)).reshape(-1, scores.dim()):
        part = as_parts(parts).at(m, tuple(index.tolist()))
        rec = m.run(sides[0], record=part.site)
        got = mean([ak.swap(part.site, rec, part.where)], sides[1])
        expected = (got - own) / (other - own)
        assert scores[tuple(index)] == pytest.approx(expected, abs=1e-4), part


def test_a_window_patches_the_layers_around_together(m: Model, task: Task) -> None:
    trial = task.on(m)
    scores = Patch("attns", window=3)(m, trial).values
    rec = m.run(CLEAN, record=["attn_out.*"])
    for layer in range(tiny.LAYERS):
        around = [b for b in (layer - 1, layer, layer + 1) if 0 <= b < tiny.LAYERS]
        edits = [ak.swap(f"attn_out.{b}", rec) for b in around]
        logits = m.run(CORRUPT, edits=edits, logits=True).logits
        assert scores[layer] == pytest.approx(
            float(trial.recovery(trial.metric(logits[:, -1:]))), abs=1e-4
        )


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="must be 'denoise' or 'noise', got 'up'"):
        Patch("heads", "up")  # type: ignore[arg-type]
    for window in (0, 2):
        with pytest.raises(InputError, match=f"odd and at least 1, got {window}"):
            Patch("heads", window=window)
