"""Find which parts of a network cause an answer.

Methods are imported from their files; what works with any of them is here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actkit.trace import tasks
    from actkit.trace._base import Localizer
    from actkit.trace._parts import Part, Parts, as_parts
    from actkit.trace._scores import Scores
    from actkit.trace._task import Task, TaskWarning, Trial

__all__ = [
    "Localizer",
    "Part",
    "Parts",
    "Scores",
    "Task",
    "TaskWarning",
    "Trial",
    "as_parts",
    "tasks",
]

_HOMES = {
    "Localizer": "actkit.trace._base",
    **dict.fromkeys(("Part", "Parts", "as_parts"), "actkit.trace._parts"),
    "Scores": "actkit.trace._scores",
    **dict.fromkeys(("Task", "TaskWarning", "Trial"), "actkit.trace._task"),
}


def __getattr__(name: str) -> Any:
    if name == "tasks":
        return import_module("actkit.trace.tasks")
    if name not in _HOMES:
        raise AttributeError(f"module 'actkit.trace' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
