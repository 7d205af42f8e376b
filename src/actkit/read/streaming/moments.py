"""How big activations are: mean and variance per unit, and the norms of the rows.

Shapes: N rows, D width.
"""

from dataclasses import dataclass, field
from math import inf, nan
from typing import Self, final

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.run.recording import Rows
from actkit.read._base import Reading
from actkit.read._sums import Spread, added, mergeable, same_width, usable


@dataclass(frozen=True, slots=True)
class MomentsResult:
    """Means, variances and norms in the units of the activations; NaN where no row was usable.

    Attributes:
        mean_D: (D,) float64 mean of each unit.
        variance_D: (D,) float64 population variance of each unit (divided by the row count).
        rms: Root of the mean square over all entries.
        norm_mean: Mean Euclidean norm of the rows.
        norm_std: Population standard deviation of the rows' norms.
        norm_min: Smallest norm.
        norm_max: Largest norm.
        num_rows: Rows that were used.
        num_nonfinite: Rows that were left out since they hold NaN or infinity.
    """

    mean_D: Tensor
    variance_D: Tensor
    rms: float
    norm_mean: float
    norm_std: float
    norm_min: float
    norm_max: float
    num_rows: int
    num_nonfinite: int

    def summary(self) -> dict[str, float]:
        """Return the numbers that fit one line of a report."""
        return {
            "rms": self.rms,
            "norm_mean": self.norm_mean,
            "norm_std": self.norm_std,
            "norm_min": self.norm_min,
            "norm_max": self.norm_max,
            "largest_unit_mean": float(self.mean_D.abs().max()) if len(self.mean_D) else nan,
            "largest_unit_std": float(self.variance_D.max().sqrt()) if len(self.mean_D) else nan,
            "num_rows": self.num_rows,
            "num_nonfinite": self.num_nonfinite,
        }


@dataclass(frozen=True, slots=True)
class _MomentsState:
    units: Spread
    norms: Spread
    low: float
    high: float
    num_nonfinite: int

    @classmethod
    def of(cls, acts_ND: Tensor, num_nonfinite: int) -> "_MomentsState":
        norm_N = torch.linalg.vector_norm(acts_ND, dim=1, dtype=torch.float64)
        low, high = norm_N.aminmax() if len(norm_N) else (inf, -inf)
        norms = Spread.of(norm_N[:, None])
        return cls(Spread.of(acts_ND), norms, float(low), float(high), num_nonfinite)

    def __add__(self, other: "_MomentsState") -> "_MomentsState":
        same_width(len(self.units.mean_D), len(other.units.mean_D))
        return _MomentsState(
            self.units + other.units,
            self.norms + other.norms,
            min(self.low, other.low),
            max(self.high, other.high),
            self.num_nonfinite + other.num_nonfinite,
        )


@method(source="Chan, Golub and LeVeque 1979, STAN-CS-79-773, the formula for two samples")
@final
@dataclass(eq=False)
class Moments(Reading):
    """Read the mean and variance of every unit and the spread of the rows' norms.

    The formula of the paper in float64; within one update deviations from the update's own mean
    are squared in float32, so a variance is right to about 1e-6 of itself.

    Args:
        skip_first: Leave out the first token of every text, whose massive activation would
            outweigh all other tokens in many language models.

    Example:
        >>> acts_ND = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        >>> reading = Moments()
        >>> reading.update(acts_ND, Rows.of(torch.ones(1, 2, dtype=torch.bool)).flat())
        >>> reading.result().variance_D, reading.result().norm_mean
        (tensor([2.2500, 4.0000], dtype=torch.float64), 2.5)
    """

    skip_first: bool = True
    _state: _MomentsState | None = field(default=None, init=False, repr=False)

    def update(self, acts_ND: Tensor, rows: Rows) -> None:
        """Take (N, D) activations and their (N,) rows."""
        acts_ND, _, num_nonfinite = usable(acts_ND, rows, skip_first=self.skip_first)
        self._state = added(self._state, _MomentsState.of(acts_ND, num_nonfinite))

    def merge(self, other: Self) -> Self:
        """Take in another reading's rows; return self."""
        mergeable(self, other)
        self._state = added(self._state, other._state)
        return self

    def result(self) -> MomentsResult:
        """Return the statistics of all rows so far."""
        state = self._state or _MomentsState.of(torch.empty(0, 0), 0)
        units, norms, used = state.units, state.norms, state.units.num_rows > 0
        variance_D = units.variance()
        mean_D = units.mean_D if used else units.mean_D * nan
        return MomentsResult(
            mean_D=mean_D,
            variance_D=variance_D,
            rms=float((variance_D + mean_D.square()).mean().sqrt()),
            norm_mean=float(norms.mean_D) if used else nan,
            norm_std=float(norms.variance().sqrt()),
            norm_min=state.low if used else nan,
            norm_max=state.high if used else nan,
            num_rows=units.num_rows,
            num_nonfinite=state.num_nonfinite,
        )
