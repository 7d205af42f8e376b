"""Bundled tasks of steering: each is a function in a file of this folder."""

from collections.abc import Callable

from actkit.core.errors import InputError
from actkit.core.folder import functions_of
from actkit.steer._concept import Concept

TASKS: dict[str, Callable[[], Concept]] = functions_of(__name__, __file__, returns="Concept")
"""The bundled tasks, by name."""


def as_task(task: str | Concept) -> Concept:
    """Return a task, or the bundled one of a name.

    Raises:
        InputError: There is none of that name.
    """
    if isinstance(task, Concept):
        return task
    if task not in TASKS:
        raise InputError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    return TASKS[task]()
