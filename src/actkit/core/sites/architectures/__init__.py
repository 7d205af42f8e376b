"""One small table per architecture: where its points are.

A file here declares `MODEL_TYPES`, the values of `config.model_type` it speaks for, and
`stacks(config)`, which returns the network's stacks of blocks. Adding an architecture adds a file.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from actkit.core.folder import files_of
from actkit.core.sites.site import Stack


@cache
def tables() -> dict[str, Callable[[Any], tuple[Stack, ...]]]:
    """Return the table of every `model_type` that has one."""
    found: dict[str, Callable[[Any], tuple[Stack, ...]]] = {}
    for file in files_of(__name__, __file__):
        found.update(dict.fromkeys(file.MODEL_TYPES, file.stacks))
    return found
