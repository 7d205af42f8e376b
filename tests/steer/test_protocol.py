"""The comparison of steering methods: who takes part, what is measured, and the controls."""

import math
from typing import Any

import pytest

import actkit as ak
from actkit.core.errors import InputError
from actkit.data import Opening
from actkit.model import Model
from actkit.steer import protocol
from actkit.steer._concept import Concept
from actkit.steer._measure import divergence, next_logits
from actkit.steer._tune import Budget
from tests.core import tiny

PAIRS = [(f"w{i} w7", f"w{i} w8") for i in range(1, 9)]
QUESTIONS = [Opening(f"w{i} w{i + 1}", ("w3", "w4"), ("w5",)) for i in (1, 12, 20, 33, 40, 50, 60)]
TASK = Concept("toy", PAIRS, QUESTIONS, "w60 w61")
NAMES = [m.name for m in protocol.PROTOCOL.metrics]


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set bounds that random weights can keep."""
    monkeypatch.setattr(protocol, "BUDGET", Budget(4, kl=50.0, perplexity=1e6, max_new_tokens=4))


def test_methods_are_found_and_not_listed() -> None:
    found = protocol.PROTOCOL.methods("sentiment")
    assert {"caa", "no edit", "random direction", "prompt only"} <= set(found)
    assert "conjugate_prompt" not in found


@pytest.mark.usefixtures("wide")
def test_every_metric_of_a_method_and_of_each_control() -> None:
    methods = ["caa", "no edit", "random direction", "prompt only"]
    board = ak.compare("steer", tiny.model(), task=TASK, methods=methods, seeds=2)
    assert [r.error for r in board.runs] == [""] * 8
    for run in board.runs:
        assert list(run.values) == NAMES
        assert all(map(math.isfinite, run.values.values()))
    scores = board.scores()
    nothing = scores["no edit"]
    assert [nothing[n].mean for n in NAMES[:5]] == [0, 1, 0, 0, 0]
    assert scores["caa"]["concept"].mean > scores["random direction"]["concept"].mean
    assert scores["prompt only"]["KL"].mean > 0
    assert board.title == "steer: toy on tiny-llama"


@pytest.mark.usefixtures("wide")
def test_settings_are_chosen_on_other_questions_than_are_measured() -> None:
    model: Model = tiny.model()
    found = protocol.PROTOCOL.measure(ak.get("caa"), TASK, model, seed=1)
    choice, held = TASK.sample(0.75, 1).halves(1)
    layers = protocol._layers(model)
    tuned = ak.steer.tune(model, "caa", choice, layers=layers, budget=protocol.BUDGET)
    base = next_logits(model, held.prompts)
    moved = next_logits(model, held.prompts, tuned.edits())
    assert found["KL"] == pytest.approx(float(divergence(base, moved).mean()), rel=1e-4)
    other = protocol.PROTOCOL.measure(ak.get("caa"), TASK, model, seed=2)
    assert other["KL"] != pytest.approx(found["KL"], rel=1e-3)


def test_a_method_that_finds_no_point_is_said_and_the_others_go_on() -> None:
    class Loud(ak.get("caa")):  # type: ignore[misc]
        """Only has strengths that break everything."""

        grid = (50.0,)

    methods: dict[str, Any] = {"loud": Loud(), "no edit": None}
    board = ak.compare("steer", tiny.model(), task=TASK, methods=methods, seeds=1)
    errors = {r.method: r.error for r in board.runs}
    assert "a point must keep to" in errors["loud"]
    assert errors["no edit"] == ""


def test_it_needs_a_network_and_a_task() -> None:
    with pytest.raises(InputError, match="task must be one of sentiment"):
        ak.compare("steer", tiny.model(), task="joy")
    with pytest.raises(InputError, match="pass a model"):
        protocol.PROTOCOL.measure(protocol.NoEdit(), TASK, None, 0)
    bare = Concept("bare", PAIRS, QUESTIONS)
    with pytest.raises(InputError, match="with an instruction"):
        protocol.PROTOCOL.measure(protocol.PromptOnly(), bare, tiny.model(), 0)
