"""The mark `paper` and the fixture `evidence`, in test runs of their own."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["pytester"]
KEY = "massive-activations-large-language"
PASSING = f"""
    import pytest
    import torch

    @pytest.mark.paper("{KEY}")
    def test_one(evidence):
        evidence("ratio to median", measured=torch.tensor(1200.0), at_least=1000)
        evidence("error", measured=-0.02, equals=0, tolerance=0.05)

    @pytest.mark.paper("{KEY}")
    @pytest.mark.paper("tinytl")
    def test_two(evidence):
        evidence("bytes", measured=3, at_least=1, at_most=4)

    def test_unmarked():
        pass
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> Any:
    root = Path(__file__).parents[1]
    pytester.makeini(f"[pytest]\nmarkers = paper(key)\npythonpath = {root / 'src'} {root}\n")
    pytester.makeconftest('pytest_plugins = ["tests._evidence"]')

    def run(text: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(text)
        return pytester.runpytest_subprocess("--evidence", "records", *options)

    return run


def records(pytester: pytest.Pytester) -> list[dict[str, Any]]:
    found = []
    for path in sorted((pytester.path / "records").glob("*.jsonl")):
        found += [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(found, key=lambda record: record["test"])


def outcome(record: dict[str, Any]) -> tuple[str, str]:
    return record["outcome"], record["note"]


def test_figures_are_recorded_with_their_bounds(pytester: pytest.Pytester, run: Any) -> None:
    run(PASSING).assert_outcomes(passed=3)
    one, two = records(pytester)
    assert one["papers"] == [KEY]
    assert one["test"].endswith("::test_one")
    assert outcome(one) == ("passed", "")
    assert one["figures"] == [
        {"what": "ratio to median", "measured": 1200.0, "bound": ">= 1000", "holds": True},
        {"what": "error", "measured": -0.02, "bound": "0 ± 0.05", "holds": True},
    ]
    assert 0 < one["seconds"] < 60
    assert set(two["papers"]) == {KEY, "tinytl"}
    assert two["figures"][0]["bound"] == ">= 1, <= 4"


def test_parallel_workers_lose_no_record(pytester: pytest.Pytester, run: Any) -> None:
    text = "import pytest\n" + "\n".join(
        f"@pytest.mark.paper('{KEY}')\ndef test_{i}(evidence):\n"
        f"    evidence('i', measured={i}, at_least=0)"
        for i in range(9)
    )
    run(text, "-n", "2").assert_outcomes(passed=9)
    assert len(list((pytester.path / "records").glob("*.jsonl"))) == 2
    assert [r["figures"][0]["measured"] for r in records(pytester)] == [float(i) for i in range(9)]


@pytest.mark.parametrize(
    ("papers", "left"),
    [(KEY, ["one", "two"]), ("tinytl", ["one", "two"]), ("mish", ["three"]), ("", [])],
)
def test_papers_are_chosen_with_those_that_share_a_test(
    papers: str, left: list[str], pytester: pytest.Pytester, run: Any
) -> None:
    text = (
        PASSING
        + """
    @pytest.mark.paper("mish")
    def test_three(evidence):
        evidence("loss", measured=1, at_most=2)
"""
    )
    done = run(text, f"--papers={papers}")
    done.assert_outcomes(passed=len(left) + 1, deselected=3 - len(left))
    assert [record["test"].rpartition("_")[2] for record in records(pytester)] == left


def test_papers_that_are_unknown_are_refused(run: Any) -> None:
    done = run(PASSING, "--papers=mish,mush")
    done.stderr.fnmatch_lines(["*--papers must name papers of docs/papers.csv, got ?'mush'?"])


@pytest.mark.parametrize(
    "bound",
    [
        "measured=1.0, at_least=1.01",
        "measured=1.0, at_most=0.99",
        "measured=1.0, equals=1.2, tolerance=0.1",
        "measured=1.0, at_least=0, at_most=0.5",
        "measured=float('nan'), at_least=0",
        "measured=float('nan'), at_most=0",
        "measured=float('inf'), at_least=0",
    ],
)
def test_a_missed_bound_fails_and_is_recorded(
    pytester: pytest.Pytester, run: Any, bound: str
) -> None:
    run(
        f"import pytest\n@pytest.mark.paper('{KEY}')\n"
        f"def test_x(evidence):\n    evidence('gap', {bound})"
    ).assert_outcomes(failed=1)
    (record,) = records(pytester)
    assert record["figures"][0]["holds"] is False
    assert record["outcome"] == "failed"
    assert "gap" in record["note"]


@pytest.mark.parametrize(
    "bound", ["", "equals=1", "tolerance=0.1", "at_least=0, tolerance=0.1", "at_most=3, equals=1"]
)
def test_a_figure_without_a_whole_bound_is_refused(run: Any, bound: str) -> None:
    result = run(
        f"import pytest\n@pytest.mark.paper('{KEY}')\n"
        f"def test_x(evidence):\n    evidence('gap', measured=1.0, {bound})"
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines("*TypeError: evidence needs a bound*")


def test_a_marked_test_must_record(pytester: pytest.Pytester, run: Any) -> None:
    result = run(f"import pytest\n@pytest.mark.paper('{KEY}')\ndef test_x(): pass")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines("*must record evidence, this one recorded none*")
    assert [outcome(r)[0] for r in records(pytester)] == ["failed"]


def test_figures_need_a_mark(run: Any) -> None:
    result = run("def test_x(evidence):\n    evidence('gap', measured=1, at_least=0)")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines("*evidence needs the mark*")


@pytest.mark.parametrize("mark", ["'massive-activation'", "", "key='tinytl'", "7"])
@pytest.mark.parametrize("place", ["function", "class"])
def test_an_unknown_paper_fails_the_collection(run: Any, mark: str, place: str) -> None:
    marked = f"@pytest.mark.paper({mark})\n"
    body = "def test_x(evidence):\n    evidence('gap', measured=1, at_least=0)"
    if place == "class":
        body = "class TestX:\n    " + body.replace("(evidence", "(self, evidence").replace(
            "\n", "\n    "
        )
    result = run("import pytest\n" + marked + body)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines("*test_x: no paper *nearest: *")


def test_other_failures_and_skips_are_recorded(pytester: pytest.Pytester, run: Any) -> None:
    run(
        f"""
        import pytest
        pytestmark = pytest.mark.paper("{KEY}")

        def test_fails(evidence):
            evidence("gap", measured=1, at_least=0)
            raise ValueError("the model broke")

        @pytest.fixture
        def broken():
            raise OSError("no weights")

        def test_setup(broken, evidence):
            pass

        @pytest.mark.skip(reason="no GPU")
        def test_skipped(evidence):
            pass
        """
    ).assert_outcomes(failed=1, errors=1, skipped=1)
    found = {r["test"].partition("::")[2]: outcome(r) for r in records(pytester)}
    assert found == {
        "test_fails": ("failed", "failed, ValueError: the model broke"),
        "test_setup": ("failed", "failed, OSError: no weights"),
        "test_skipped": ("skipped", "skipped, Skipped: no GPU"),
    }


def test_without_the_option_nothing_is_written(pytester: pytest.Pytester, run: Any) -> None:
    pytester.makepyfile(PASSING)
    run(PASSING, "--evidence", "").assert_outcomes(passed=3)
    assert not (pytester.path / "records").exists()
