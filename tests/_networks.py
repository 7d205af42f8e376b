"""Opens the real networks that `make weights` fetches, or says that they are not there."""

import os
from importlib.util import find_spec

import pytest

import actkit as ak
from actkit.model import Model
from actkit.opening.bundled import BUNDLED

MEND = "run: make weights"


def open_network(name: str) -> Model:
    """Open a network; without its packages skip the test, and fail it under CI.

    Only packages that are absent are excused: a damaged one raises whatever it raises.
    """
    missing = [package for package in BUNDLED[name].packages if find_spec(package) is None]
    if not missing:
        return ak.open(name)
    reason = f"{name} is not installed ({', '.join(missing)}); {MEND}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end of a run which networks were missed, and by how many tests."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = [str(report.longrepr[-1]) for report in skipped if isinstance(report.longrepr, tuple)]
    missed = [reason for reason in reasons if reason.endswith(MEND)]
    for reason in sorted(set(missed)):
        number = missed.count(reason)
        terminalreporter.write_line(f"NOT TESTED, {number} tests: {reason}", red=True, bold=True)
