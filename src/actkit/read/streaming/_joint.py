"""What readings of several sites share: sites that fit together, lengths, and which rows count.

Shapes: N rows, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.core.run.recording import Rows
from actkit.read._sums import counted

_SMALL, _LARGE = 1e-12, 1e15  # between these lengths float32 can square a vector


def one_stream(acts: Sequence[Tensor], rows: Rows, least: int) -> None:
    """Refuse what is not at least `least` sites of one shape (N, D) with one row each."""
    shapes = [tuple(x.shape) for x in acts]
    same = len(set(shapes)) == 1 and len(shapes[0]) == 2 and rows.valid.shape == shapes[0][:1]
    if len(shapes) < least or not same:
        raise InputError(
            f"need at least {least} sites of one shape (N, D) with a row each, got "
            f"{len(shapes)} of shapes {sorted(set(shapes))} and rows of shape "
            f"{tuple(rows.valid.shape)}"
        )
    floating(acts)


def floating(acts: Sequence[Tensor]) -> None:
    """Refuse values that are not floating point."""
    if wrong := [x.dtype for x in acts if not x.is_floating_point()]:
        raise InputError(f"activations must be floating point, got {wrong[0]}")


def lengths(acts: Tensor) -> Tensor:
    """Return the length of each vector, (N, ..., D) to float64 (N, ...) on the CPU.

    A vector that holds NaN or infinity has no finite length.
    """
    wide = torch.promote_types(acts.dtype, torch.float32)
    length: Tensor = torch.linalg.vector_norm(acts.detach(), dim=-1, dtype=wide).cpu().double()
    if length.numel() and not in_range(length):
        length = torch.linalg.vector_norm(acts.detach().cpu(), dim=-1, dtype=torch.float64)
    return length


def in_range(length: Tensor) -> bool:
    """Say whether float32 can square vectors of these lengths; False if one is not finite."""
    low, high = length.aminmax()
    return bool(low > _SMALL) and bool(high < _LARGE)


def usable_rows(rows: Rows, finite_N: Tensor, skip_first: bool) -> tuple[Tensor, int]:
    """Return which rows a statistic may use, and how many it loses since they are not finite.

    Args:
        rows: The (N,) rows.
        finite_N: Which rows hold finite numbers only, on the CPU.
        skip_first: Whether the first token of a text is left out.
    """
    keep_N = counted(rows, skip_first).cpu()
    return keep_N & finite_N, int((keep_N & ~finite_N).sum())
