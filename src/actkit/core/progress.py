"""A bar for work that may take long; silent when standard error is no terminal."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from importlib.util import find_spec
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE = 2.0
"""Seconds before a bar shows."""


def note(text: str) -> None:
    """Tell the user something that is no fault: a warning of the logger "actkit"."""
    logging.getLogger("actkit").warning(text)


def track(
    items: Iterable[T], what: str, total: float | None = None, unit: str = "steps"
) -> Iterator[T]:
    """Yield the items; after two seconds show a bar with rate and time left.

    Args:
        items: What to iterate over.
        what: A few words in front of the bar.
        total: The number of items, if it is known and `items` has no length.
        unit: What an item is, in the plural.
    """
    if total is None:
        total = len(items) if isinstance(items, Sized) else None
    shown = sys.stderr.isatty() and find_spec("rich") is not None
    started, bar = time.monotonic(), None
    try:
        for count, item in enumerate(items):
            yield item
            if shown and bar is None and time.monotonic() - started > PATIENCE:
                bar = _bar(known=total is not None)
                bar.start()
                task = bar.add_task(what, total=total, done="", rate="")
            if bar is not None:
                seconds = time.monotonic() - started
                words = {
                    "done": done(count + 1, total, unit),
                    "rate": rate(count + 1, seconds, unit),
                }
                bar.update(task, completed=count + 1, **words)
    finally:
        if bar is not None:
            bar.stop()


def done(count: int, total: float | None, unit: str) -> str:
    """Return how far a job is, `5/12 batches`; without the total if it is not known."""
    return f"{count} {unit}" if total is None else f"{count}/{total:g} {unit}"


def rate(count: int, seconds: float, unit: str) -> str:
    """Return the mean rate with its unit, `0.4 batches/s`."""
    return f"{count / max(seconds, 1e-9):.2g} {unit}/s"


def _bar(known: bool) -> Any:
    """Return a bar: with the time left where the total is known, else with the time gone."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn() if known else TimeElapsedColumn(),
        TextColumn("left" if known else "so far"),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
