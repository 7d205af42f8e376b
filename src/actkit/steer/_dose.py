"""Edits at another strength than they were made for."""

from collections.abc import Sequence
from dataclasses import replace

from actkit.core.edits.edit import Edit
from actkit.core.edits.operation import Operation
from actkit.core.errors import EditError
from actkit.steer._base import Strength


def rescaled(edits: Sequence[Edit], factor: Strength) -> list[Edit]:
    """Return the edits at `factor` times their strength, so that a loaded file can be turned up.

    Args:
        edits: Of operations that have a strength: `add`, and most that methods bring.
        factor: A number, or (B,) numbers, one for each row.

    Raises:
        EditError: An edit has no strength.

    Example:
        >>> import torch
        >>> from actkit.core.edits.edit import add
        >>> rescaled([add("resid_post.3", torch.ones(2), 0.5)], 4.0)[0].operation.scale
        2.0
    """
    return [replace(edit, operation=_at(edit, factor)) for edit in edits]


def _at(edit: Edit, factor: Strength) -> Operation:
    found = edit.operation.scaled(factor)
    if found is None:
        raise EditError(
            f"only what has a strength can be turned up, got {edit.operation.name} at {edit.site}"
        )
    return found
