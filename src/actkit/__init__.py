"""actkit: record, understand, trace, steer and economise a neural network's activations.

Names are imported when they are first used, so that `import actkit` costs nothing and the
command line answers without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actkit import data, steer, trace
    from actkit.catalog import get, methods
    from actkit.core import errors
    from actkit.core.checkpoints import Checkpoints
    from actkit.core.edit import (
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
    from actkit.core.edit_file import load_edits, save_edits
    from actkit.core.engines import Ray
    from actkit.core.inputs import Call
    from actkit.core.model import Model
    from actkit.core.opening import open
    from actkit.core.recording import Recording, Rows
    from actkit.core.saved import SavedMeter
    from actkit.core.sites import Site
    from actkit.core.where import Where
    from actkit.leaderboard import Leaderboard, compare
    from actkit.report.report import Report
    from actkit.report.scan import scan
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
]

_HOMES = {
    "data": "actkit.data",
    "errors": "actkit.core.errors",
    "steer": "actkit.steer",
    "trace": "actkit.trace",
    **dict.fromkeys(("get", "methods"), "actkit.catalog"),
    **dict.fromkeys(("Leaderboard", "compare"), "actkit.leaderboard"),
    **dict.fromkeys(
        ("Edit", "add", "affine", "apply", "clamp", "project_out", "scale", "set", "swap"),
        "actkit.core.edit",
    ),
    **dict.fromkeys(("load_edits", "save_edits"), "actkit.core.edit_file"),
    "Call": "actkit.core.inputs",
    "Ray": "actkit.core.engines",
    "Checkpoints": "actkit.core.checkpoints",
    "Model": "actkit.core.model",
    "open": "actkit.core.opening",
    **dict.fromkeys(("Recording", "Rows"), "actkit.core.recording"),
    "SavedMeter": "actkit.core.saved",
    "Site": "actkit.core.sites",
    "Where": "actkit.core.where",
    "Report": "actkit.report.report",
    "scan": "actkit.report.scan",
    "Store": "actkit.store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'actkit' has no attribute {name!r}")
    home = import_module(_HOMES[name])
    value = home if name in ("data", "errors", "steer", "trace") else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
