"""Compare: scores, intervals, order, front, and a log that goes on where it stopped."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from scipy import stats

import actkit as ak
from actkit import comparison as leaderboard
from actkit.comparison import Leaderboard, Score
from actkit.core.errors import ActkitError, DataError, InputError, MethodError
from actkit.protocol import Comparison, Measure

METRICS = (Measure("quality", better="higher"), Measure("cost", "s", log=True), Measure("note"))
POINTS = {"good": (0.9, 10.0), "cheap": (0.5, 1.0), "poor": (0.4, 2.0), "even": (0.9, 10.0)}


class Toy(Comparison):
    metrics: ClassVar = METRICS
    tasks: ClassVar = ("first", "second")

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, int]] = []

    def methods(self, task: Any) -> Mapping[str, Any]:
        return {**POINTS, "refuses": None}

    def measure(self, method: Any, task: Any, model: Any, seed: int) -> dict[str, float]:
        self.calls.append((method, task, seed))
        if method is None:
            raise InputError("it takes no such task")
        quality, cost = method
        return {"quality": quality + 0.01 * seed, "cost": cost, "note": seed}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = Toy()
    monkeypatch.setattr(leaderboard, "_protocol", lambda family: made)
    return made


def test_intervals_are_students() -> None:
    values = [1.0, 4.0, 2.5, 7.25, 3.0]
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    score = Score.of(values)
    assert (score.mean - score.margin, score.mean + score.margin) == pytest.approx((low, high))
    assert math.isnan(Score.of([2.0]).margin) and math.isnan(Score.of([]).mean)


def test_order_front_and_what_a_method_refuses(toy: Toy) -> None:
    board = ak.compare("toy", seeds=3)
    assert [*board.scores()] == ["good", "even", "cheap", "poor", "refuses"]
    assert board.front() == ["good", "even", "cheap"]
    assert board.scores()["good"]["quality"].mean == pytest.approx(0.91)
    table = board.table().splitlines()
    assert table[0].split("|")[1:4] == [" method  ", " quality      ", " cost (s) "]
    assert table[2].startswith("| good *") and "0.91 ± 0.025" in table[2]
    assert table[-1].startswith("| refuses ") and "0 of 3: InputError: it takes" in table[-1]
    assert {task for _, task, _ in toy.calls} == {"first"}


def test_own_methods_and_seeds(toy: Toy) -> None:
    board = ak.compare("toy", task="second", methods={"mine": (2.0, 3.0), "poor": None}, seeds=[7])
    assert [*board.scores()] == ["mine", "poor"]
    assert toy.calls == [((2.0, 3.0), "second", 7), (POINTS["poor"], "second", 7)]
    assert " 1 " in board.table().splitlines()[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "third"}, "task must be one of first, second, got 'third'"),
        ({"methods": ["good", "nobody"]}, "got nobody"),
        ({"methods": []}, "at least one method"),
        ({"seeds": 0}, "at least one seed"),
    ],
    ids=["task", "method", "no methods", "no seeds"],
)
def test_bad_input(toy: Toy, settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ak.compare("toy", **settings)
    assert not toy.calls


def test_families_are_known_and_have_a_protocol() -> None:
    with pytest.raises(MethodError, match="no family 'cook'"):
        ak.compare("cook")
    with pytest.raises(MethodError, match="family brain has no protocol yet"):
        ak.compare("brain")


def test_a_log_goes_on_where_it_stopped(toy: Toy, tmp_path: Path) -> None:
    log = tmp_path / "runs.jsonl"
    whole = ak.compare("toy", log=log, seeds=2)
    assert len(log.read_text().splitlines()) == 1 + 2 * 5
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:4]) + "\n")
    toy.calls.clear()
    again = ak.compare("toy", log=log, seeds=2)
    assert again.runs == whole.runs and len(toy.calls) == 10 - 3
    with pytest.raises(DataError, match="a log is of one comparison"):
        ak.compare("toy", log=log, task="second")
    log.write_text("{nothing")
    with pytest.raises(DataError, match="runs as JSON lines"):
        ak.compare("toy", log=log)


def test_an_error_that_is_no_refusal_is_raised_and_what_was_done_is_kept(
    toy: Toy, tmp_path: Path
) -> None:
    log = tmp_path / "runs.jsonl"
    with pytest.raises(ValueError, match="unpack"):
        ak.compare("toy", methods={"good": None, "broken": (1, 2, 3)}, seeds=1, log=log)
    assert json.loads(log.read_text().splitlines()[1])["method"] == "good"


def test_json_and_plot(toy: Toy, tmp_path: Path) -> None:
    board = ak.compare("toy", seeds=2)
    facts = json.loads(board.to_json(tmp_path / "board.json"))
    assert facts == json.loads((tmp_path / "board.json").read_text())
    assert facts["front"] == board.front() and facts["scores"]["refuses"]["cost"]["mean"] is None
    assert len(facts["runs"]) == 10 and facts["about"]["model"] is None
    figure = board.plot(tmp_path / "board.html")
    named = {t.name: t for t in figure.data}
    assert named["cheap"].x[0] == 1.0 and named["cheap"].marker.symbol == "star"
    assert named["poor"].marker.symbol == "circle"
    assert figure.layout.xaxis.type == "log" and figure.layout.yaxis.type == "linear"
    assert (tmp_path / "board.html").stat().st_size > 1e6


def test_nothing_finished_is_an_empty_front() -> None:
    run = leaderboard.Run("a", 0, {}, "no")
    board = Leaderboard("t", METRICS, (run,), {})
    assert board.front() == [] and "0 of 1: no" in board.table()
    assert issubclass(DataError, ActkitError)
