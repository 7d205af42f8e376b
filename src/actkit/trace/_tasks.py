"""Bundled tasks: pairs of prompts of which the one changes what the answer depends on.

Words were chosen to be single tokens of SmolLM2; on another network `task.on(model)` says which
are not.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from actkit import data
from actkit.core.errors import InputError
from actkit.data import Cloze
from actkit.trace._task import Task


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
    task = _of(rows, "indirect objects", metric)
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


def capitals(num: int | None = None, kind: str = "statement", metric: str = "logit difference") -> Task:
    """Capitals of countries: "The capital of France is" -> " Paris", against another country.

    Args:
        num: How many pairs; all if None.
        kind: One of the four sentences: "statement", "city", "parliament", "visit".
        metric: As in `Task`.
    """
    rows = [row for row in data.capitals() if row.kind == kind][:num]
    if not rows:
        raise InputError(f"kind must be one of the sentences of ak.data.capitals(), got {kind!r}")
    return _of(rows, "capitals", metric)


def _of(rows: Sequence[Cloze], name: str, metric: str) -> Task:
    return Task(
        [r.clean for r in rows], [r.corrupt for r in rows], [r.answer for r in rows],
        [r.wrong for r in rows], metric, name=name,
    )  # fmt: skip


TASKS: Mapping[str, Callable[[], Task]] = {"ioi": ioi, "capitals": capitals}
"""The bundled tasks, by name."""


def as_task(task: str | Task) -> Task:
    """Return a task, or the bundled one of a name."""
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise InputError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    return TASKS[task]()
