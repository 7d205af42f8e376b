"""actkit: record, understand, trace, steer and economise a neural network's activations.

Names are imported when they are first used, so that `import actkit` costs nothing and the
command line answers without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actkit import data, steer, trace, worlds
    from actkit.catalog import get, methods
    from actkit.comparison import Leaderboard, compare
    from actkit.core import errors
    from actkit.core.edits.edit import (
        Edit,
        add,
        affine,
        apply,
        clamp,
        project_out,
        scale,
        set,
        swap,
    )
    from actkit.core.edits.files import load_edits, save_edits
    from actkit.core.edits.where import Where
    from actkit.core.engines.settings import Ray
    from actkit.core.run.inputs import Call
    from actkit.core.run.recording import Recording, Rows
    from actkit.core.run.saved_tensors import SavedMeter
    from actkit.core.sites.site import Site
    from actkit.model import Model
    from actkit.opening.checkpoints import Checkpoints
    from actkit.opening.open import open
    from actkit.scanning.report import Report
    from actkit.scanning.scan import scan
    from actkit.store import Store

__version__ = "0.1.0"
__all__ = [
    "Call",
    "Checkpoints",
    "Edit",
    "Leaderboard",
    "Model",
    "Ray",
    "Recording",
    "Report",
    "Rows",
    "SavedMeter",
    "Site",
    "Store",
    "Where",
    "add",
    "affine",
    "apply",
    "clamp",
    "compare",
    "data",
    "errors",
    "get",
    "load_edits",
    "methods",
    "open",
    "project_out",
    "save_edits",
    "scale",
    "scan",
    "set",
    "steer",
    "swap",
    "trace",
    "worlds",
]

_HOMES = {
    "data": "actkit.data",
    "errors": "actkit.core.errors",
    "steer": "actkit.steer",
    "trace": "actkit.trace",
    "worlds": "actkit.worlds",
    **dict.fromkeys(("get", "methods"), "actkit.catalog"),
    **dict.fromkeys(("Leaderboard", "compare"), "actkit.comparison"),
    **dict.fromkeys(
        ("Edit", "add", "affine", "apply", "clamp", "project_out", "scale", "set", "swap"),
        "actkit.core.edits.edit",
    ),
    **dict.fromkeys(("load_edits", "save_edits"), "actkit.core.edits.files"),
    "Call": "actkit.core.run.inputs",
    "Ray": "actkit.core.engines.settings",
    "Checkpoints": "actkit.opening.checkpoints",
    "Model": "actkit.model",
    "open": "actkit.opening.open",
    **dict.fromkeys(("Recording", "Rows"), "actkit.core.run.recording"),
    "SavedMeter": "actkit.core.run.saved_tensors",
    "Site": "actkit.core.sites.site",
    "Where": "actkit.core.edits.where",
    "Report": "actkit.scanning.report",
    "scan": "actkit.scanning.scan",
    "Store": "actkit.store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'actkit' has no attribute {name!r}")
    home = import_module(_HOMES[name])
    value = home if name in ("data", "errors", "steer", "trace", "worlds") else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
