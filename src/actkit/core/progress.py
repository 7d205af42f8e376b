"""A bar for work that may take long; silent when standard error is no terminal."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 2.0
"""Seconds before a bar shows."""


def track(items: Iterable[T], what: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Yield the items; after two seconds show a bar with rate and time left.

    Args:
        items: What to iterate over.
        what: A few words in front of the bar.
        total: The number of items, if it is known and `items` has no length.
        unit: What one item is called in the rate.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from tqdm import tqdm

    yield from tqdm(items, desc=what, total=total, unit=unit, delay=PATIENCE, leave=False)
