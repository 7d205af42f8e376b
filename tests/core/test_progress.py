"""A bar says how far, of how much, how fast and how long still."""

import io
import logging
import sys
from typing import Any

import pytest
from rich.console import Console

from actkit.core import progress
from actkit.core.progress import done, note, rate, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, items: Any, **how: Any) -> str:
    """Return what a bar that shows at once has written."""
    screen = Terminal()
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(
        "rich.console.Console",
        lambda **_: Console(file=screen, force_terminal=True, width=120),
    )
    list(track(items, "observing", **how))
    return screen.getvalue()


def test_total_unit_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, (i for i in range(7)), total=7, unit="batches")
    assert "observing" in text and "7/7 batches" in text
    assert "batches/s" in text and " left" in text


def test_without_a_total_the_time_gone_stands_there(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, (i for i in range(7)), unit="batches")
    assert "7 batches" in text and "batches/s" in text and " so far" in text
    assert "/?" not in text and "it/s" not in text


def test_words() -> None:
    assert done(5, None, "batches") == "5 batches"
    assert done(5, 12, "layers") == "5/12 layers"
    assert rate(2, 5.0, "batches") == "0.4 batches/s"
    assert rate(3000, 2.0, "steps") == "1.5e+03 steps/s"


def test_notes_go_to_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "actkit"):
        note("rows run one by one")
    assert caplog.messages == ["rows run one by one"]
