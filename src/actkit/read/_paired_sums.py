"""What sets of activations of the same rows have in common: sums that stream and merge.

Shapes: N rows, D width, L sets, W the widths of all sets side by side.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.read._sums import added

Source = Any
"""What a measure reads: a tensor, array, memory map or column of a store, (N, D) or (N,) for one
unit, of which it takes blocks of rows; or an iterable of such blocks, (n, D) each."""

BLOCK = 4096
"""Rows that are read at a time where they can be chosen."""
_ROUNDING = 1e-12  # a share of its terms below which an HSIC is the rounding of zero


def blocks(source: Source) -> Iterator[Tensor]:
    """Yield the rows of a source as (n, D) float64 blocks; further axes are flattened.

    Raises:
        InputError: A block has no axis of rows.
    """
    shape = getattr(source, "shape", None)
    parts: Iterable[Any] = source
    if shape is not None:
        if not len(shape):
            raise InputError(f"activations must have an axis of rows, got shape {tuple(shape)}")
        parts = (source[i : i + BLOCK] for i in range(0, shape[0], BLOCK))
    for part in parts:
        # A copy, for PyTorch warns of arrays that it may not write to, as a memory map's are.
        block = torch.as_tensor(np.array(part) if isinstance(part, np.ndarray) else part).detach()
        if block.dim() < 2 and shape is None:
            raise InputError(f"blocks must be (rows, width), got shape {tuple(block.shape)}")
        block = block.cpu() if block.device.type == "mps" else block
        if len(block):
            yield block.double().reshape(len(block), -1)


def in_step(*sources: Source) -> Iterator[list[Tensor]]:
    """Yield blocks of the same rows of all sources.

    Raises:
        InputError: One has more rows than another.
    """
    shapes = [tuple(s.shape) for s in sources if hasattr(s, "shape")]
    if len({shape[:1] for shape in shapes}) > 1:
        raise InputError(f"activations must have the same rows, got shapes {shapes}")
    streams = [blocks(source) for source in sources]
    held = [next(stream, None) for stream in streams]
    num_rows = 0
    while whole := [block for block in held if block is not None]:
        if len(whole) < len(held):
            missing = [i for i, block in enumerate(held) if block is None]
            raise InputError(
                f"activations must have the same rows, number {missing[0]} has {num_rows} and "
                "others have more"
            )
        size = min(map(len, whole))
        num_rows += size
        yield [block[:size] for block in whole]
        held = [
            block[size:] if len(block) > size else next(stream, None)
            for block, stream in zip(whole, streams, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over rows from which every linear similarity of L sets follows exactly.

    A row z is all sets side by side, from the mean; q holds its squared norm in each set. Two
    of them add by moving both to the mean of all rows, so large sums are never subtracted.
    Everything is float64, on the activations' device: 8 W^2 bytes.
    """

    num_rows: int
    widths: tuple[int, ...]
    mean_W: Tensor
    cross_WW: Tensor  # sum of z z^T
    third_WL: Tensor  # sum of z q^T
    fourth_LL: Tensor  # sum of q q^T

    @classmethod
    def of(cls, acts_NW: Tensor, widths: tuple[int, ...]) -> "Sums":
        """Take the rows of all sets side by side."""
        acts_NW = acts_NW.double()
        first_W = acts_NW[:1].sum(0)  # the mean of rows that are all equal must not be rounded
        mean_W = first_W + (acts_NW - first_W).sum(0) / max(len(acts_NW), 1)
        z_NW = acts_NW - mean_W
        q_NL = torch.stack([part.square().sum(1) for part in _parts(z_NW, widths, 1)], 1)
        return cls(len(z_NW), widths, mean_W, z_NW.T @ z_NW, z_NW.T @ q_NL, q_NL.T @ q_NL)

    def __add__(self, other: "Sums") -> "Sums":
        """Return the sums over both sets of rows together."""
        if self.widths != other.widths:
            raise InputError(f"rows must keep their widths {self.widths}, got {other.widths}")
        num_rows = self.num_rows + other.num_rows
        step_W = other.mean_W - self.mean_W
        mean_W = self.mean_W + step_W * (other.num_rows / max(num_rows, 1))
        mine, theirs = self.about(mean_W), other.about(mean_W)
        total = [a + b for a, b in zip(mine, theirs, strict=True)]
        return Sums(num_rows, self.widths, mean_W, *total)

    def about(self, center_W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three sums with rows counted from another point than their mean."""
        step_W = center_W - self.mean_W
        columns: Any = _parts(step_W[:, None], self.widths)
        step_WL: Tensor = torch.block_diag(*columns)  # type: ignore[no-untyped-call]
        e_L, t_L = step_WL.square().sum(0), self.squares()
        moved_WL, third_LL = self.cross_WW @ step_WL, step_WL.T @ self.third_WL
        n = self.num_rows
        cross_WW = self.cross_WW + n * step_W.outer(step_W)
        third_WL = self.third_WL - 2 * moved_WL - step_W.outer(t_L + n * e_L)
        fourth_LL = self.fourth_LL - 2 * (third_LL + third_LL.T) + 4 * step_WL.T @ moved_WL
        fourth_LL = fourth_LL + t_L.outer(e_L) + e_L.outer(t_L) + n * e_L.outer(e_L)
        return cross_WW, third_WL, fourth_LL

    def squares(self) -> Tensor:
        """Return each set's (L,) sum of squared distances to its mean."""
        return self.per_set(self.cross_WW.diagonal())

    def per_set(self, values: Tensor) -> Tensor:
        """Return the sums over each set's units along the first axis, (W, ...) to (L, ...)."""
        return torch.stack([part.sum(0) for part in _parts(values, self.widths)])

    def between(self, i: int, j: int) -> Tensor:
        """Return the cross-product of two sets' rows from their means, (D_i, D_j)."""
        return _parts(_parts(self.cross_WW, self.widths)[i], self.widths, 1)[j]


def _parts(values: Tensor, widths: tuple[int, ...], dim: int = 0) -> tuple[Tensor, ...]:
    """Return the part of each set along an axis of all their units."""
    return torch.split(values, list(widths), dim)


def joint_sums(*sources: Source, least: int = 2) -> Sums:
    """Return the sums over all rows of sources that are read in step.

    Raises:
        InputError: There are fewer rows than `least`, rows do not match, or some are not finite.
    """
    total: Sums | None = None
    num_rows = num_nonfinite = 0
    for parts in in_step(*sources):
        acts_NW = torch.cat([part.to(parts[0].device) for part in parts], 1)
        num_rows += len(acts_NW)
        num_nonfinite += len(acts_NW) - int(acts_NW.isfinite().all(1).sum())
        if not num_nonfinite:
            total = added(total, Sums.of(acts_NW, tuple(part.shape[1] for part in parts)))
    check_rows(num_rows, num_nonfinite, least)
    if total is None:
        raise InputError("need at least 1 row, got none")
    return total


def check_rows(num_rows: int, num_nonfinite: int, least: int) -> None:
    """Refuse rows that hold NaN or infinity, and too few rows."""
    if num_nonfinite:
        raise InputError(
            f"activations must be finite, {num_nonfinite} of {num_rows} rows hold NaN or infinity"
        )
    if num_rows < least:
        raise InputError(f"need at least {least} rows, got {num_rows}")


def alignment(sums: Sums, unbiased: bool = False) -> Tensor:
    """Return the (L, L) linear CKA of all sets; NaN where a set's own HSIC is zero."""
    n, t_L, fourth_LL = sums.num_rows, sums.squares(), sums.fourth_LL
    hsic_LL = sums.per_set(sums.per_set(sums.cross_WW.square()).T)  # |X^T Y|^2
    size_L = hsic_LL.diagonal() + fourth_LL.diagonal()
    if unbiased and n < 4:
        return torch.full_like(hsic_LL, torch.nan)
    if unbiased:  # HSIC_1 of Song et al. times n (n - 3), where the rows add up to zero
        hsic_LL = hsic_LL - fourth_LL + t_L.outer(t_L) / ((n - 1) * (n - 2))
        hsic_LL = hsic_LL - 2 / (n - 2) * fourth_LL
    own_L = hsic_LL.diagonal()
    own_L = own_L.where(own_L > _ROUNDING * size_L, torch.nan)
    return hsic_LL / own_L.outer(own_L).sqrt()


def varied(value: float, what: str) -> float:
    """Return a measure that is defined; refuse activations that leave it undefined."""
    if isnan(value):
        raise InputError(f"{what} needs activations that vary: all rows of one set are alike")
    return value
