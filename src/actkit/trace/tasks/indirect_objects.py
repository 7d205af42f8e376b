"""Indirect objects: "When Mary and John met at the park, John handed a ball to" -> " Mary"."""

from typing import Literal

from actkit import data
from actkit.core.errors import InputError
from actkit.data import Cloze
from actkit.trace._task import Task
from actkit.trace.tasks._written import of_rows

PLACE = 0


def ioi(
    num: int = 20,
    seed: int = 0,
    corrupt: Literal["abc", "swap"] = "abc",
    template: int | None = 0,
    metric: str = "logit difference",
) -> Task:
    """Indirect objects: "When Mary and John met at the park, John handed a ball to" -> " Mary".

    Args:
        num: How many pairs.
        seed: Of the names and things.
        corrupt: "abc": three other names, so that neither answer is favoured; "swap": the second
            mention names the other person, so that the wrong answer becomes right.
        template: One of the eight sentences, so that positions mean the same in all pairs; None
            for all of them.
        metric: As in `Task`.
    """
    rows = data.ioi(num, seed, template)
    task = of_rows(rows, "indirect objects", metric)
    if corrupt == "abc":
        return task
    if corrupt != "swap":
        raise InputError(f"corrupt must be 'abc' or 'swap', got {corrupt!r}")
    return Task(task.clean, [_swapped(r) for r in rows], task.answers, task.wrong, metric,
                name="indirect objects, swapped")  # fmt: skip


def _swapped(row: Cloze) -> str:
    """Return the prompt with the other person's name at the second mention of the subject."""
    before, _, after = row.clean.rpartition(row.subject)
    return before + row.answer.strip() + after
