"""A bar for work that may take long; silent when standard error is no terminal."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from importlib.util import find_spec
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE = 2.0
"""Seconds before a bar shows."""


def track(items: Iterable[T], what: str, total: float | None = None) -> Iterator[T]:
    """Yield the items; after two seconds show a bar with rate and time left.

    Args:
        items: What to iterate over.
        what: A few words in front of the bar.
        total: The number of items, if it is known and `items` has no length.
    """
    if total is None:
        total = len(items) if isinstance(items, Sized) else None
    shown = sys.stderr.isatty() and find_spec("rich") is not None
    started, bar = time.monotonic(), None
    try:
        for count, item in enumerate(items):
            yield item
            if shown and bar is None and time.monotonic() - started > PATIENCE:
                bar = _bar()
                bar.start()
                task = bar.add_task(what, total=total)
            if bar is not None:
                bar.update(task, completed=count + 1)
    finally:
        if bar is not None:
            bar.stop()


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
