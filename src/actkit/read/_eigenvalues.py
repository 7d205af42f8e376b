"""Eigenvalues of a covariance, from rows or as a `Spectrum` found them, and how they decay.

Shapes: N rows, D width, K eigenvalues.
"""

from dataclasses import dataclass
from math import nan
from typing import NamedTuple

import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.maths.marchenko_pastur import rounding


@dataclass(frozen=True, slots=True)
class Eigen:
    """The D eigenvalues of the population covariance, float64, largest first; D > 0, some > 0.

    Attributes:
        values_D: Exact zeros where rounding alone could have made a value.
        num_rows: The number N of rows.
    """

    values_D: Tensor
    num_rows: int

    @property
    def min_rows(self) -> int:
        """Return 4 D: with fewer rows small eigenvalues come out too small and large too large."""
        return 4 * len(self.values_D)


def eigenvalues(given: Tensor, num_rows: int | None, centre: bool = True) -> Eigen:
    """Return the eigenvalues of rows, or check those that are given.

    Args:
        given: (N, D) rows, or (D,) eigenvalues.
        num_rows: How many rows eigenvalues come from; None with rows.
        centre: Take the mean off the rows; eigenvalues are taken as they are.

    Raises:
        InputError: The shape does not fit, `num_rows` is missing or too much, a value is not
            finite, an eigenvalue is negative, or nothing varies.
    """
    if not given.is_floating_point() or given.dim() not in (1, 2) or not given.numel():
        raise InputError(
            "need (N, D) activations or (D,) eigenvalues in floating point, got "
            f"{given.dtype} of shape {tuple(given.shape)}"
        )
    if (num_rows is None) != (given.dim() == 2) or (num_rows is not None and num_rows < 1):
        raise InputError(
            "num_rows (at least 1) goes with eigenvalues and with them alone, got "
            f"{num_rows} and shape {tuple(given.shape)}"
        )
    given = given.detach().cpu()
    if num_bad := int((~given.isfinite()).sum()):
        raise InputError(f"need finite values, got {num_bad} that are not of {given.numel()}")
    rows = given.dim() == 2
    values_D = _of_rows(given, centre) if rows else given.double().sort(descending=True).values
    if values_D[-1] < 0 or values_D[0] == 0:
        raise InputError(
            f"eigenvalues must be at least 0 and one above, got {float(values_D[-1]):.3g} to "
            f"{float(values_D[0]):.3g} from shape {tuple(given.shape)}"
        )
    return Eigen(values_D, num_rows or len(given))


def _of_rows(acts_ND: Tensor, centre: bool) -> Tensor:
    num_rows, width = acts_ND.shape
    least = rounding(acts_ND)
    off_ND = acts_ND.double()
    off_ND = off_ND - off_ND.mean(0) if centre else off_ND
    gram = off_ND @ off_ND.T if num_rows < width else off_ND.T @ off_ND
    found = torch.linalg.eigvalsh(gram / num_rows).flip(0)
    values_D = off_ND.new_zeros(width)
    values_D[: len(found)] = found.where(found > least, 0)
    return values_D


class Decay(NamedTuple):
    """A power law lambda_i ~ i^-alpha, its R2, and the indices i that it was fitted on."""

    alpha: float
    r2: float
    window: tuple[int, int]


def decay(values_D: Tensor, window: tuple[int, int]) -> Decay:
    """Fit log lambda_i = -alpha log i + c by least squares, i from 1, largest eigenvalue first.

    Raises:
        InputError: Fewer than 3 eigenvalues above 0 are in the window.
    """
    num_positive = int((values_D > 0).sum())
    first, last = window[0], min(window[1], num_positive)
    if first < 1 or last < first + 2:
        raise InputError(
            f"need at least 3 eigenvalues above 0 in the window {window} (first index 1), got "
            f"{num_positive} in all"
        )
    x_K = torch.arange(first, last + 1, dtype=torch.float64).log()
    y_K = values_D[first - 1 : last].log()
    off_x, off_y = x_K - x_K.mean(), y_K - y_K.mean()
    slope = float(off_x @ off_y / (off_x @ off_x))
    total, rest = float(off_y @ off_y), float((off_y - slope * off_x).square().sum())
    r2 = 1 - rest / total if y_K[0] > y_K[-1] else nan
    return Decay(-slope, r2, (first, last))
