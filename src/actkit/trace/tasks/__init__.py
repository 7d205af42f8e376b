"""Bundled tasks: pairs of prompts of which the one changes what the answer depends on.

Each is a function in a file of this folder. Words were chosen to be single tokens of SmolLM2, and
all prompts of a task to be of one length; on another network `task.on(model)` says which are not.
The same seed gives the same pairs, and a longer list begins with a shorter one.
"""

from collections.abc import Callable
from typing import Any

from actkit.core.errors import InputError
from actkit.core.folder import functions_of
from actkit.trace._task import Task

TASKS: dict[str, Callable[..., Task]] = functions_of(__name__, __file__, returns="Task")
"""The bundled tasks, by name."""
globals().update(TASKS)  # `tasks.capitals` is the function, not the file of the same name


def as_task(task: str | Task) -> Task:
    """Return a task, or the bundled one of a name.

    Raises:
        InputError: There is none of that name.
    """
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise InputError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    return TASKS[task]()


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return ["TASKS", "as_task", *TASKS]
