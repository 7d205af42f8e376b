"""`actkit trace`: tasks and pairs, pages and JSON, on a tiny network."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import actkit as ak
from actkit.cli import main
from actkit.model import Model
from actkit.trace import Task, tasks
from tests.core import tiny

Run = Callable[..., tuple[int, str, str]]
PAIR = ("--clean", "w1 w2 w3", "--corrupt", "w1 w9 w3", "--answer", "w5", "--wrong", "w7")


@pytest.fixture
def actkit(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process; every name opens a tiny network, any task is tiny's."""
    network: Model = tiny.model()
    monkeypatch.setattr(ak, "open", lambda source: network, raising=False)
    made = Task(["w1 w2 w3", "w4 w2 w3"], ["w1 w9 w3", "w4 w9 w3"], ["w5"] * 2, ["w7"] * 2)
    monkeypatch.setitem(tasks.TASKS, "ioi", lambda: made)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["actkit", "trace", *arguments])
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        return (code, *capfd.readouterr())

    return run


def scored(num: int = 2, **settings: Any) -> Any:
    return ak.get("patch")(**settings)(tiny.model(), tasks.as_task("ioi")[:num])


@pytest.mark.filterwarnings("ignore::actkit.trace.TaskWarning")
def test_a_task_is_scored_and_the_top_printed(actkit: Run) -> None:
    code, out, err = actkit("any", "ioi", "--top", "3")
    assert (code, err) == (0, "")
    told, empty, head, *rows = out.splitlines()[-6:]
    assert "task on tiny-llama" in out
    assert told.startswith("patch, heads, ") and told.endswith(" s")
    assert head.split() == ["part", "share", "of", "the", "gap"] and empty == ""
    names = [name for name, _ in scored().top(3)]
    assert [row.rpartition("  ")[0].strip() for row in rows] == names


@pytest.mark.filterwarnings("ignore::actkit.trace.TaskWarning")
def test_parts_and_number_of_pairs_are_passed_on(actkit: Run) -> None:
    code, out, err = actkit("any", "ioi", "--parts", "mlp", "--num", "1", "--json")
    assert (code, err) == (0, "")
    found, own = json.loads(out), scored(1, parts="mlp")
    assert found["axes"] == ["layer", "position"] and "1 clean prompts right" in found["report"]
    assert found["values"] == [pytest.approx(row, abs=1e-5) for row in own.values.tolist()]


@pytest.mark.filterwarnings("ignore::actkit.trace.TaskWarning")
def test_a_pair_of_your_own(actkit: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, out, err = actkit("any", *PAIR, "--html", str(page))
    assert (code, err) == (0, "") and out.endswith(f"wrote {page}\n")
    assert "your pair on tiny-llama" in page.read_text()
    code, out, _ = actkit("any", *PAIR[:6], "--json")
    assert code == 0 and "log probability" in json.loads(out)["report"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("any", "needs a task, or all of --clean, --corrupt and --answer"),
        ("any --clean w1 --corrupt w2", "or all of --clean, --corrupt and --answer"),
        ("any ioi --clean w1", "not both"),
        ("any joy", "task must be one of ioi, capitals"),
        ("any ioi --method nosuch", "no method 'nosuch'"),
        ("any ioi --method caa", "of the family trace, got 'caa'"),
        ("any ioi --parts nosuch", "parts must be one of resid"),
        ("any ioi --html /nosuch/page.html", "a folder that exists, got /nosuch/page.html"),
    ],
)
def test_errors_are_one_line(actkit: Run, line: str, said: str) -> None:
    code, out, err = actkit(*line.split())
    assert (code, out) == (2, "")
    assert said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("corrupt", "answer", "said"),
    [("w1", "w3", "pair 0 has 2 and 1"), ("w1 w3", "w3 w4", "one token, got 'w3 w4' of 2")],
    ids=["lengths", "words"],
)
def test_a_pair_that_does_not_fit_is_told_in_one_line(
    actkit: Run, corrupt: str, answer: str, said: str
) -> None:
    code, _, err = actkit("any", "--clean", "w1 w2", "--corrupt", corrupt, "--answer", answer)
    assert code == 2 and said in err and err.count("\n") == 1
