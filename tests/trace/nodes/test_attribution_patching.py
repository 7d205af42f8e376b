"""Attribution patching: against finite differences of patches in float64.

Shapes: B pairs, T tokens.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Parts, Task, TaskWarning
from actkit.trace._gradients import sides
from actkit.trace._parts import as_parts
from actkit.trace.nodes.attribution_patching import AttributionPatching
from tests.core import tiny

CLEAN = [[11, 12, 13, 14, 15], [21, 12, 33, 14, 25]]
CORRUPT = [[11, 17, 13, 14, 15], [21, 18, 33, 44, 25]]
PARTS = ["resid", "heads", "mlps", "neurons", Parts("k", ("position", "head")), Parts("q")]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def m(request: pytest.FixtureRequest) -> Model:
    if request.param == "gpt2":
        return Model(tiny.gpt2().double())
    net = tiny.llama(torch.float64)
    for block in net.model.layers:  # Llama's own norms round to float32
        block.input_layernorm, block.post_attention_layernorm = rms_norm(), rms_norm()
    net.model.norm = rms_norm()
    return Model(net)


def rms_norm() -> torch.nn.Module:
    return torch.nn.RMSNorm(tiny.WIDTH, 1e-6, dtype=torch.float64)


def difference(logits_nPV: Tensor) -> Tensor:
    return logits_nPV[:, -1, 5] - 2 * logits_nPV[:, -1, 7]


def task_on(at: Any = "last") -> Task:
    return Task(torch.tensor(CLEAN), torch.tensor(CORRUPT), metric=difference, at=at)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_scores_are_slopes_of_partial_patches(m: Model, parts: str, direction: Any) -> None:
    """A patch that goes a thousandth of the way moves the metric by that much of the score."""
    trial = task_on().on(m)
    scores = AttributionPatching(parts, direction)(m, trial).values
    side, onto = sides(direction)
    step = 1e-4
    every = torch.cartesian_prod(*map(torch.arange, scores.shape)).reshape(-1, scores.dim())
    for index in every[:: max(1, len(every) // 7)]:
        part = as_parts(parts).at(m, tuple(index.tolist()))
        source, base = (trial.record(s, part.site)[part.site] for s in (side, onto))

        def moved(by: float, part: Any = part, way: Any = source - base) -> float:
            edit = ak.add(part.site, way, by, part.where)
            logits = m.run(trial.batch(onto), edits=[edit], logits=True).logits
            return float(difference(logits).mean())

        gap = trial.gap if onto == "corrupt" else -trial.gap
        slope = (moved(step) - moved(-step)) / (2 * step) / gap
        assert scores[tuple(index)] == pytest.approx(slope, abs=2e-5, rel=1e-3), part


def test_heads_add_up_to_what_attention_writes(m: Model) -> None:
    trial = task_on().on(m)
    heads = AttributionPatching("heads")(m, trial).values
    whole = AttributionPatching("attns")(m, trial).values
    torch.testing.assert_close(heads.sum(-1), whole, rtol=1e-4, atol=1e-5)


def test_the_metric_sees_the_asked_positions() -> None:
    """Patching what comes after the asked position cannot matter."""
    m = Model(tiny.llama())
    scores = AttributionPatching("resid")(m, task_on(at=2)).values
    assert (scores[:, 3:] == 0).all()
    assert scores[:, 1].abs().min() > 0


def test_padding_does_not_matter() -> None:
    m = tiny.model()
    clean, corrupt = ["w1 w2 w3", "w4 w5 w6 w7"], ["w1 w9 w3", "w4 w8 w6 w7"]
    both = Task(clean, corrupt, metric=difference)
    found = [AttributionPatching("heads")(m, t).values * t.on(m).gap
             for t in (both[[0]], both[[1]], both)]  # fmt: skip
    torch.testing.assert_close(found[2], (found[0] + found[1]) / 2, rtol=1e-4, atol=1e-5)


def test_unknown_directions_are_refused() -> None:
    with pytest.raises(InputError, match=r"direction must be one of denoise, noise, got 'up'"):
        AttributionPatching("heads", "up")  # type: ignore[arg-type]


def test_sides_without_a_gap_are_refused() -> None:
    m = Model(tiny.llama())
    same = Task(torch.tensor(CLEAN), torch.tensor(CLEAN), metric=difference)
    with pytest.warns(TaskWarning), pytest.raises(InputError, match="shares need a gap"):
        AttributionPatching()(m, same)
