"""One small table per architecture: where its points are.

A file here declares `MODEL_TYPES`, the values of `config.model_type` it speaks for, and
`stacks(config)`, which returns the network's stacks of blocks. Adding an architecture adds a file.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from actkit.core.sites import Stack


@cache
def tables() -> dict[str, Callable[[Any], tuple[Stack, ...]]]:
    """Return the table of every `model_type` that has one."""
    found: dict[str, Callable[[Any], tuple[Stack, ...]]] = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        file = import_module(f"{__name__}.{path.stem}")
        found.update(dict.fromkeys(file.MODEL_TYPES, file.stacks))
    return found
