"""What bundled tasks share: pairs that are written at random, and names of people."""

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from actkit.core.errors import InputError
from actkit.data import Cloze
from actkit.trace._task import Task

MOST = 200
"""Most pairs of a task that is written here; below that none runs short of different ones."""


def words_of(*lines: str) -> list[str]:
    """Return the words of some lines."""
    return " ".join(lines).split()


MEN = words_of("John James Robert Michael David William Richard Thomas Charles Peter Daniel Paul")
WOMEN = words_of("Mary Linda Susan Sarah Karen Lisa Emma Emily Anna Laura Alice Helen")


class Row(NamedTuple):
    """A pair of prompts with their answers."""

    clean: str
    corrupt: str
    answer: str | tuple[str, ...]
    wrong: str | tuple[str, ...]


def written(num: int, seed: int, write: Callable[[Random], Row], name: str, metric: str) -> Task:
    """Return a task of different pairs."""
    rng, rows, wanted = Random(seed), dict[Row, None](), checked(num)
    while len(rows) < wanted:
        rows[write(rng)] = None
    clean, corrupt, answers, wrong = map(list, zip(*rows, strict=True))
    return Task(clean, corrupt, answers, wrong, metric, name=name)


def checked(num: int) -> int:
    """Return a number of pairs; refuse one that cannot be written."""
    if not 1 <= num <= MOST:
        raise InputError(f"num must lie in 1..{MOST}, got {num}")
    return num


def of_rows(rows: Sequence[Cloze], name: str, metric: str) -> Task:
    """Return the task of some rows of prompts with a blank."""
    return Task(
        [r.clean for r in rows], [r.corrupt for r in rows], [r.answer for r in rows],
        [r.wrong for r in rows], metric, name=name,
    )  # fmt: skip
