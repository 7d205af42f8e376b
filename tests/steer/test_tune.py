"""The choice of layer and strength."""

import json
from pathlib import Path

import pytest
import torch

import actkit as ak
from actkit.core.errors import InputError
from actkit.data import Opening
from actkit.model import Model
from actkit.steer._concept import Concept
from actkit.steer._measure import divergence, next_logits
from actkit.steer._tune import Budget, Point, tune
from tests.core import tiny

PAIRS = [(f"w{i} w7", f"w{i} w8") for i in range(1, 7)]
QUESTIONS = [Opening(f"w{i} w{i + 1}", ("w3", "w4"), ("w5",)) for i in (1, 20, 40, 50, 60)]
TASK = Concept("toy", PAIRS, QUESTIONS)
WIDE = Budget(kl=50.0, perplexity=1e6, max_new_tokens=4)


def test_points_equal_runs_one_by_one() -> None:
    model = tiny.model()
    found = tune(model, "caa", TASK, strengths=[0.5, -1.0, 2.0], budget=WIDE)
    assert [(p.layer, p.strength) for p in found.points] == [
        (layer, s) for layer in range(tiny.LAYERS) for s in (0.5, -1.0, 2.0)
    ]
    caa = ak.get("caa")().fit(model, PAIRS)
    base = next_logits(model, TASK.prompts)
    for point in found.points:
        moved = next_logits(model, TASK.prompts, caa.at(point.layer).edits(point.strength))
        rise = (TASK.log_odds(model, moved) - TASK.log_odds(model, base)).mean()
        assert point.concept == pytest.approx(rise.item(), abs=1e-4)
        assert point.kl == pytest.approx(divergence(base, moved).mean().item(), abs=1e-4)


def test_the_chosen_point_is_the_best_within_bounds() -> None:
    model = tiny.model()
    found = tune(model, "caa", TASK, strengths=[0.1, 1.0, 4.0], budget=WIDE)
    assert found.chosen.concept == max(p.concept for p in found.points)
    costs = sorted(p.kl for p in found.points)
    tight = Budget(kl=costs[3], perplexity=1e6, max_new_tokens=4)
    bound = tune(model, "caa", TASK, strengths=[0.1, 1.0, 4.0], budget=tight)
    assert bound.chosen.kl <= costs[3]
    assert bound.chosen.concept == max(p.concept for p in bound.points if p.kl <= costs[3])
    edits = bound.edits()
    assert [e.site for e in edits] == [f"resid_post.{bound.chosen.layer}"]
    assert len(bound.random) == 10


def test_the_front_is_what_nothing_beats() -> None:
    found = tune(tiny.model(), "caa", TASK, strengths=[0.1, 0.5, 1.0, 4.0], budget=WIDE)
    front = found.front()
    assert front == sorted(front, key=lambda p: p.kl)
    for point in found.points:
        beaten = any(
            q.concept >= point.concept and q.kl <= point.kl and q != point for q in found.points
        )
        assert (point in front) == (not beaten)


def test_bounds_that_nothing_keeps_are_said() -> None:
    with pytest.raises(InputError, match="none of 3 does; the lowest KL is"):
        tune(tiny.model(), "caa", TASK, strengths=[4.0], budget=Budget(kl=0.0))
    with pytest.raises(InputError, match="a strength to try"):
        tune(tiny.model(), "caa", TASK, strengths=[])
    with pytest.raises(InputError, match="layers must be among"):
        tune(tiny.model(), "caa", TASK, layers=[17])


def test_it_is_written_and_plotted(tmp_path: Path) -> None:
    found = tune(tiny.model(), "caa", TASK, strengths=[0.5, 1.0], budget=WIDE)
    facts = json.loads(found.to_json(tmp_path / "t.json"))
    assert facts["chosen"]["layer"] == found.chosen.layer
    assert facts["about"]["settings"]["method"] == "caa"
    assert len(facts["points"]) == 6
    found.plot(tmp_path / "t.html")
    assert "chosen" in (tmp_path / "t.html").read_text()
    assert found.table().count("*") == 1


def test_points_compare() -> None:
    assert Point(1, 1.0, 2.0, 0.5).beats(Point(2, 1.0, 1.0, 0.5))
    assert not Point(1, 1.0, 2.0, 0.5).beats(Point(2, 1.0, 2.0, 0.5))
    assert not Point(1, 1.0, 2.0, 0.6).beats(Point(2, 1.0, 1.0, 0.5))


@pytest.mark.slow
def test_early_layers_are_not_chosen_on_smollm2(smollm2: Model) -> None:
    """Vectors work on SmolLM2 from the middle on, not in the first third."""
    budget = Budget(prompts=6, finalists=2, max_new_tokens=8)
    task = Concept("few", ak.data.sentiment()[:16], ak.steer.as_task("sentiment").questions[:6])
    found = tune(
        smollm2, "caa", task, layers=[4, 8, 16, 20], strengths=[1.0, 2.0, 4.0], budget=budget
    )
    assert found.chosen.layer in (16, 20)
    assert found.chosen.concept > max(found.random) + 0.5
    assert torch.tensor([p.kl for p in found.points]).isfinite().all()
