"""Find which parts of a network cause an answer.

Methods are imported from their files; what works with any of them is here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actkit.trace import tasks
    from actkit.trace._attention_edits import set_attention
    from actkit.trace._base import Localizer
    from actkit.trace._edge_circuit import EdgeCircuit, edge_circuit
    from actkit.trace._graph import Graph
    from actkit.trace._head_classes import attention_paid, copy_scores, head_classes
    from actkit.trace._latent_values import LatentValues
    from actkit.trace._parts import Part, Parts, as_parts
    from actkit.trace._robustness import Choice, Robustness, noised, robustness
    from actkit.trace._scores import Scores
    from actkit.trace._task import Task, TaskWarning, Trial

__all__ = [
    "Choice",
    "EdgeCircuit",
    "Graph",
    "LatentValues",
    "Localizer",
    "Part",
    "Parts",
    "Robustness",
    "Scores",
    "Task",
    "TaskWarning",
    "Trial",
    "as_parts",
    "attention_paid",
    "copy_scores",
    "edge_circuit",
    "head_classes",
    "noised",
    "robustness",
    "set_attention",
    "tasks",
]

_HOMES = {
    "set_attention": "actkit.trace._attention_edits",
    **dict.fromkeys(("EdgeCircuit", "edge_circuit"), "actkit.trace._edge_circuit"),
    "Graph": "actkit.trace._graph",
    **dict.fromkeys(
        ("attention_paid", "copy_scores", "head_classes"), "actkit.trace._head_classes"
    ),
    "LatentValues": "actkit.trace._latent_values",
    **dict.fromkeys(("Choice", "Robustness", "noised", "robustness"), "actkit.trace._robustness"),
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
