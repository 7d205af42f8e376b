"""The mark `paper`, the fixture `evidence`, and the records that `make evidence` reads.

A marked test must record at least one figure. With `--evidence=DIR` each process writes one JSON
line per marked test into its own file in DIR, so parallel workers never meet in one.
"""

import json
import math
import os
import time
from collections.abc import Generator
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any, SupportsFloat

import pytest

from actkit.papers import MeasuredFigure, papers

FIGURES = pytest.StashKey[list[MeasuredFigure]]()
SECONDS = pytest.StashKey[float]()


class Evidence:
    """Records what a test measured and holds it against the paper's bound."""

    def __init__(self, figures: list[MeasuredFigure]) -> None:
        self.figures = figures

    def __call__(
        self,
        what: str,
        *,
        measured: SupportsFloat,
        at_least: float | None = None,
        at_most: float | None = None,
        equals: float | None = None,
        tolerance: float | None = None,
    ) -> None:
        """Record one figure, then assert its bound.

        Args:
            what: What was measured, with its unit: "gap over random direction (nats)".
            measured: The number; a tensor of one element will do.
            at_least: The smallest value that supports the claim.
            at_most: The largest value that supports the claim.
            equals: The value that the claim states; needs `tolerance`.
            tolerance: How far `measured` may be from `equals`.
        """
        if (equals is None) != (tolerance is None) or (at_least, at_most, equals) == (None,) * 3:
            raise TypeError(
                "evidence needs a bound: at_least, at_most, or equals with tolerance, got "
                f"{at_least=}, {at_most=}, {equals=}, {tolerance=}"
            )
        value = float(measured)
        bounds = []
        if at_least is not None:
            bounds.append((f">= {at_least:g}", value >= at_least))
        if at_most is not None:
            bounds.append((f"<= {at_most:g}", value <= at_most))
        if equals is not None and tolerance is not None:
            bounds.append((f"{equals:g} ± {tolerance:g}", abs(value - equals) <= tolerance))
        figure = MeasuredFigure(
            what=what,
            measured=value if math.isfinite(value) else None,
            bound=", ".join(text for text, _ in bounds),
            holds=all(holds for _, holds in bounds) and math.isfinite(value),
        )
        self.figures.append(figure)
        assert figure.holds, str(figure)


@pytest.fixture
def evidence(request: pytest.FixtureRequest) -> Evidence:
    """Record measured figures of a test that is marked with its paper."""
    if not _keys(request.node):
        raise pytest.UsageError("evidence needs the mark @pytest.mark.paper('key')")
    return Evidence(request.node.stash[FIGURES])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--evidence", metavar="DIR", help="write what marked tests measure to DIR")
    parser.addoption(
        "--papers",
        metavar="KEYS",
        help="of marked tests run those of these papers only (KEY,KEY), and of papers that share "
        "a test with them; of no paper if it is empty",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the evidence of papers that were not asked for; whole rows come of what is left."""
    given = config.getoption("--papers")
    if given is None:
        return
    chosen = set(filter(None, given.split(",")))
    if unknown := sorted(chosen - papers().keys()):
        raise pytest.UsageError(f"--papers must name papers of docs/papers.csv, got {unknown}")
    marks = [set(_keys(item)) for item in items]
    while more := {key for keys in marks if keys & chosen for key in keys} - chosen:
        chosen |= more
    left = [item for item, keys in zip(items, marks, strict=True) if keys and not keys & chosen]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(
    collector: pytest.Collector,
) -> Generator[None, Any, Any]:
    """Fail the collection of a file that names an unknown paper."""
    made = yield
    for item in made if isinstance(made, list) else []:
        for key in _keys(item) if isinstance(item, pytest.Item) else []:
            if key not in papers():
                near = ", ".join(get_close_matches(str(key), papers())) or "none is close"
                raise collector.CollectError(
                    f"{item.name}: no paper {key!r} in docs/papers.csv; nearest: {near}"
                )
    return made


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[FIGURES] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Time the test, and fail it if it is marked and recorded nothing."""
    started = time.perf_counter()
    try:
        result = yield
    finally:
        item.stash[SECONDS] = time.perf_counter() - started
    if _keys(item) and not item.stash[FIGURES]:
        pytest.fail("a test marked with a paper must record evidence, this one recorded none")
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write the record of a marked test once its outcome is known."""
    report = yield
    folder = item.config.getoption("--evidence")
    over = report.when == "call" or (report.when == "setup" and not report.passed)
    if folder and over and _keys(item):
        _write(Path(folder), item, report)
    return report


def _keys(item: pytest.Item) -> list[Any]:
    marks = item.iter_markers("paper")
    return [mark.args[0] if mark.args else None for mark in marks]


def _write(folder: Path, item: pytest.Item, report: pytest.TestReport) -> None:
    record = {
        "test": item.nodeid,
        "papers": _keys(item),
        "outcome": report.outcome,
        "note": "" if report.passed else f"{report.outcome}, {_reason(report)}",
        "seconds": item.stash.get(SECONDS, 0.0),
        "figures": [asdict(figure) for figure in item.stash.get(FIGURES, [])],
    }
    folder.mkdir(parents=True, exist_ok=True)
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    with (folder / f"{worker}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _reason(report: pytest.TestReport) -> str:
    """Return the first line of what went wrong."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].partition("\n")[0]
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr).partition("\n")[0]
