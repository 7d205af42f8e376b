"""What the readings share: which rows count, and sums that add up.

Shapes: N rows, D width.
"""

from dataclasses import dataclass, fields
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.core.run.recording import Rows

_SMALL, _LARGE = 1e-12, 1e15  # between them float32 can square a value and sum the squares


def usable(
    acts: Tensor, rows: Rows, *, dims: int = 2, skip_first: bool = False
) -> tuple[Tensor, Rows, int]:
    """Return the activations that a statistic may use, their rows, and how many were not finite.

    Padding is left out, and with `skip_first` the first token of every text (position 0 where
    there is a token id). Half precision becomes float32; float32 whose squares could overflow
    or vanish becomes float64. Apple's GPUs have no float64, so their tensors come to the CPU.

    Args:
        acts: (N, D), or (N, ...) of `dims` axes; it is not changed.
        rows: The (N,) rows.
        dims: The number of axes that are expected.
        skip_first: Whether the first token of a text is left out.

    Raises:
        InputError: Axes or rows do not fit, or the values are not floating point.
    """
    if acts.dim() != dims or rows.valid.shape != acts.shape[:1]:
        raise InputError(
            f"activations must have {dims} axes and one row each, got shape "
            f"{tuple(acts.shape)} and rows of shape {tuple(rows.valid.shape)}"
        )
    if not acts.is_floating_point():
        raise InputError(f"activations must be floating point, got {acts.dtype}")
    keep_N = counted(rows, skip_first)
    acts = acts.detach().to("cpu" if acts.device.type == "mps" else acts.device)
    if not keep_N.all():
        acts, rows = _select(acts, rows, keep_N)
    if acts.dtype not in (torch.float32, torch.float64):
        acts = acts.float()
    if not acts.numel():
        return acts, rows, 0
    low, high = acts.aminmax()
    span = float(high - low)
    if _SMALL < span < _LARGE:
        return acts, rows, 0
    finite_N = acts.isfinite().flatten(1).all(1)
    num_nonfinite = len(acts) - int(finite_N.sum())
    if num_nonfinite:
        rest, rows = _select(acts, rows, finite_N)
        return usable(rest, rows, dims=dims)[0], rows, num_nonfinite
    return acts.double(), rows, 0


def counted(rows: Rows, skip_first: bool) -> Tensor:
    """Return which rows are no padding and, with `skip_first`, no first token of a text, (N,)."""
    if not skip_first:
        return rows.valid
    return rows.valid & ~((rows.position == 0) & (rows.token >= 0))


def median_of_counts(values: Tensor, counts: Tensor) -> float:
    """Return the median of rising values that occur `counts` times; the mean of the middle two."""
    cumulative = counts.cumsum(0)
    total = int(cumulative[-1])
    middle = torch.tensor([(total - 1) // 2, total // 2], device=counts.device)
    return float(values[torch.searchsorted(cumulative, middle, right=True)].mean())


def _select(acts: Tensor, rows: Rows, keep_N: Tensor) -> tuple[Tensor, Rows]:
    index_N = keep_N.nonzero()[:, 0]
    return acts.index_select(0, index_N.to(acts.device)), rows[index_N]


def same_width(held: int, given: int, what: str = "width") -> None:
    """Refuse rows of another width than those that a reading holds."""
    if held != given:
        raise InputError(f"one reading takes rows of one {what}: it holds {held}, got {given}")


def mergeable(one: Any, other: Any) -> None:
    """Refuse to merge readings of another kind or with other settings."""
    if type(one) is not type(other):
        raise InputError(
            "readings must be of one kind to merge, "
            f"got {type(one).__name__} and {type(other).__name__}"
        )
    own, theirs = ({f.name: getattr(r, f.name) for f in fields(r) if f.init} for r in (one, other))
    if own != theirs:
        raise InputError(f"readings must have the same settings to merge, got {own} and {theirs}")


class Sum(Protocol):
    """A state that adds up, whatever the order."""

    def __add__(self, other: Self) -> Self:
        """Return the state of both sets of rows together."""


S = TypeVar("S", bound=Sum)


def added(state: S | None, more: S | None) -> S | None:
    """Return the sum of two states of which either may be missing."""
    if state is None or more is None:
        return more if state is None else state
    return state + more


@dataclass(frozen=True, slots=True)
class Spread:
    """Count, mean and sum of squared deviations per column, float64 on the CPU.

    Two of them add by the formula of Chan, Golub and LeVeque (1979), which never subtracts
    large sums from each other.
    """

    num_rows: int
    mean_D: Tensor
    squares_D: Tensor

    @classmethod
    def of(cls, acts_ND: Tensor) -> "Spread":
        """Take (N, D) rows; deviations are squared in the rows' own precision."""
        num_rows = max(len(acts_ND), 1)
        mean_D = acts_ND.sum(0, dtype=torch.float64) / num_rows
        near_D = mean_D.to(acts_ND.dtype)
        off_ND = acts_ND - near_D
        squares_D = off_ND.square_().sum(0).double()
        squares_D -= num_rows * (mean_D - near_D.double()).square()  # the mean was rounded
        return cls(len(acts_ND), mean_D.cpu(), squares_D.clamp_min_(0).cpu())

    def __add__(self, other: "Spread") -> "Spread":
        """Return the spread of both sets of rows together."""
        num_rows = self.num_rows + other.num_rows
        share = other.num_rows / max(num_rows, 1)
        step_D = other.mean_D - self.mean_D
        between_D = step_D.square() * (share * self.num_rows)
        return Spread(
            num_rows, self.mean_D + share * step_D, self.squares_D + other.squares_D + between_D
        )

    def variance(self) -> Tensor:
        """Return the (D,) population variances, NaN without rows."""
        return self.squares_D / self.num_rows if self.num_rows else self.squares_D * torch.nan


def exp_entropy(weights: Tensor, floor: float = 0.0) -> float:
    """Return exp(-sum p log p) with p = weights / sum + floor: how many weights are in use.

    NaN if there are no weights, 0 if all are zero.

    Example:
        >>> round(exp_entropy(torch.tensor([3.0, 3.0, 0.0])), 6)
        2.0
    """
    if not len(weights):
        return float("nan")
    total = weights.sum()
    if total == 0:
        return 0.0
    share = weights / total + floor
    return float(torch.special.entr(share).sum().exp())
