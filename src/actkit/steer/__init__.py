"""Change what a network does by editing its activations.

Methods are imported from their files; what works with any of them is here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actkit.export.llama_cpp import load_vectors, save_gguf
    from actkit.export.lower import bake, save_peft
    from actkit.steer._base import Steerer
    from actkit.steer._concept import Concept, Task
    from actkit.steer._dose import rescaled
    from actkit.steer._gain import kl_bounded_gain
    from actkit.steer._measure import Effects, effects
    from actkit.steer._shift import LogitShift, logit_shift_report
    from actkit.steer._tune import Budget, Tuning, tune
    from actkit.steer.tasks import as_task

__all__ = [
    "Budget",
    "Concept",
    "Effects",
    "LogitShift",
    "Steerer",
    "Task",
    "Tuning",
    "as_task",
    "bake",
    "effects",
    "kl_bounded_gain",
    "load_vectors",
    "logit_shift_report",
    "rescaled",
    "save_gguf",
    "save_peft",
    "tune",
]

_HOMES = {
    **dict.fromkeys(("LogitShift", "logit_shift_report"), "actkit.steer._shift"),
    "Steerer": "actkit.steer._base",
    **dict.fromkeys(("Concept", "Task"), "actkit.steer._concept"),
    "as_task": "actkit.steer.tasks",
    "rescaled": "actkit.steer._dose",
    "kl_bounded_gain": "actkit.steer._gain",
    **dict.fromkeys(("Effects", "effects"), "actkit.steer._measure"),
    **dict.fromkeys(("Budget", "Tuning", "tune"), "actkit.steer._tune"),
    **dict.fromkeys(("bake", "save_peft"), "actkit.export.lower"),
    **dict.fromkeys(("load_vectors", "save_gguf"), "actkit.export.llama_cpp"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'actkit.steer' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
