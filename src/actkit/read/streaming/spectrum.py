"""How many dimensions activations use: the spectrum of their covariance.

Shapes: N rows, D width.
"""

from dataclasses import dataclass, field
from math import nan
from typing import Self, final

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.run.recording import Rows
from actkit.read._base import Reading
from actkit.read._sums import exp_entropy, mergeable, same_width, usable

_CHUNK = 1024  # rows whose products are summed in float32 before they go to the float64 total
_BLOCKS = 6  # strips of a Gram matrix; only its upper triangle is computed, 7/12 of the work


@dataclass(frozen=True, slots=True)
class SpectrumResult:
    """Eigenvalues and what they say; NaN where no row was usable, 0 dimensions if all are equal.

    No count of dimensions exceeds the number of rows, so read many more rows than units.

    Attributes:
        eigenvalues_D: (D,) float64 eigenvalues of the population covariance, largest first, in
            squared units of the activations.
        effective_rank: exp of the entropy (nats) of the eigenvalues' shares.
        rankme: exp of the entropy of the singular values' shares, of the rows as they are (their
            mean is not taken off), as in Garrido et al.
        participation_ratio: (sum of eigenvalues)^2 / sum of their squares.
        share_first: Share of the variance in the first component.
        num_90: Components that hold 90 % of the variance.
        num_99: Components that hold 99 % of the variance.
        num_rows: Rows that were used.
        num_nonfinite: Rows that were left out since they hold NaN or infinity.
    """

    eigenvalues_D: Tensor
    effective_rank: float
    rankme: float
    participation_ratio: float
    share_first: float
    num_90: int
    num_99: int
    num_rows: int
    num_nonfinite: int

    def summary(self) -> dict[str, float]:
        """Return the numbers that fit one line of a report."""
        return {
            "effective_rank": self.effective_rank,
            "rankme": self.rankme,
            "participation_ratio": self.participation_ratio,
            "share_first": self.share_first,
            "num_90": self.num_90,
            "num_99": self.num_99,
            "width": len(self.eigenvalues_D),
            "num_rows": self.num_rows,
            "num_nonfinite": self.num_nonfinite,
        }


@dataclass(slots=True)
class _SpectrumState:
    """Sums of deviations from `near_D`, a fixed point close to the mean; grows in place."""

    near_D: Tensor  # float32 numbers in float64: the rows' own precision holds them exactly
    sum_D: Tensor
    gram_DD: Tensor  # on and above the diagonal
    num_rows: int = 0

    @classmethod
    def at(cls, acts_ND: Tensor) -> "_SpectrumState":
        near_D = acts_ND.mean(0, dtype=torch.float64).float().double()
        return cls(near_D, torch.zeros_like(near_D), near_D.new_zeros(len(near_D), len(near_D)))

    def add(self, acts_ND: Tensor) -> None:
        near_D = self.near_D.to(acts_ND)
        width = len(near_D)
        block = max(1, -(-width // _BLOCKS))
        for part_ND in torch.split(acts_ND, _CHUNK):
            off_ND = part_ND - near_D
            self.sum_D += off_ND.sum(0).to(self.sum_D)
            for i in range(0, width, block):
                strip = off_ND[:, i : i + block].T @ off_ND[:, i:]
                self.gram_DD[i : i + block, i:] += strip.to(self.gram_DD.device)
        self.num_rows += len(acts_ND)

    def moved(self, near_D: Tensor) -> "_SpectrumState":
        """Return the same sums about another point."""
        step_D = self.near_D.to(near_D) - near_D
        sum_D = self.sum_D.to(near_D)
        cross_DD = step_D[:, None] * (sum_D + self.num_rows * step_D)
        gram_DD = self.gram_DD.to(near_D) + cross_DD + sum_D[:, None] * step_D
        return _SpectrumState(near_D, sum_D + self.num_rows * step_D, gram_DD, self.num_rows)

    def about(self, point_D: Tensor) -> Tensor:
        """Return the eigenvalues of the mean product of deviations from a point, falling."""
        gram_DD = self.moved(point_D).gram_DD / self.num_rows
        values_D: Tensor = torch.linalg.eigvalsh(gram_DD.triu() + gram_DD.triu(1).T).flip(0).cpu()
        noise = -2 * values_D[-1:].clamp_max(0)  # rounding alone makes an eigenvalue negative
        return values_D.where(values_D > noise, 0)


@method(source="Garrido et al. 2023, arXiv:2210.02885; Roy and Vetterli 2007, EUSIPCO")
@final
@dataclass(eq=False)
class Spectrum(Reading):
    """Read the eigenvalues of the covariance, and how many dimensions they spread over.

    RankMe is as in the paper, but from the eigenvalues of the summed products instead of an SVD
    of all rows at once, so it streams. Products of deviations from the first update's mean are
    summed in float32 over 1,024 rows, and these sums in float64. Rounding moves an eigenvalue by
    less than 1e-6 of the largest one; what is not above the size of the most negative eigenvalue
    (which rounding alone can cause) counts as 0. Give float64 activations for more.

    Args:
        skip_first: Leave out the first token of every text, whose massive activation would be
            the first component by itself in many language models.

    Example:
        >>> acts_ND = torch.tensor([[5.0, 1.0], [5.0, -1.0], [7.0, 0.0], [3.0, 0.0]])
        >>> reading = Spectrum()
        >>> reading.update(acts_ND, Rows.of(torch.ones(1, 4, dtype=torch.bool)).flat())
        >>> reading.result().eigenvalues_D, reading.result().share_first
        (tensor([2.0000, 0.5000], dtype=torch.float64), 0.8)
    """

    skip_first: bool = True
    _state: _SpectrumState | None = field(default=None, init=False, repr=False)
    _width: int | None = field(default=None, init=False, repr=False)
    _num_nonfinite: int = field(default=0, init=False, repr=False)

    def update(self, acts_ND: Tensor, rows: Rows) -> None:
        """Take (N, D) activations and their (N,) rows."""
        acts_ND, _, num_nonfinite = usable(acts_ND, rows, skip_first=self.skip_first)
        self._fit(acts_ND.shape[1], num_nonfinite)
        if acts_ND.numel():
            if self._state is None:
                self._state = _SpectrumState.at(acts_ND)
            self._state.add(acts_ND)

    def merge(self, other: Self) -> Self:
        """Take in another reading's rows; return self."""
        mergeable(self, other)
        if other._width is not None:
            self._fit(other._width, other._num_nonfinite)
        if other._state is not None:
            near_D = other._state.near_D if self._state is None else self._state.near_D
            more = other._state.moved(near_D)
            if self._state is not None:
                more.sum_D += self._state.sum_D
                more.gram_DD += self._state.gram_DD
                more.num_rows += self._state.num_rows
            self._state = more
        return self

    def result(self) -> SpectrumResult:
        """Return the spectrum of all rows so far."""
        state = self._state
        if state is None:
            none_D = torch.full((self._width or 0,), nan, dtype=torch.float64)
            return SpectrumResult(none_D, nan, nan, nan, nan, 0, 0, 0, self._num_nonfinite)
        values_D = state.about(state.near_D + state.sum_D / state.num_rows)
        squares_D = state.about(torch.zeros_like(state.near_D))
        count = min(state.num_rows, len(squares_D))  # singular values of the (N, D) rows
        total = float(values_D.sum())
        held_D = values_D.cumsum(0) / total
        return SpectrumResult(
            eigenvalues_D=values_D,
            effective_rank=exp_entropy(values_D),
            rankme=exp_entropy(squares_D[:count].sqrt(), floor=1e-7),
            participation_ratio=total**2 / float(values_D.square().sum()) if total else 0.0,
            share_first=float(held_D[0]),
            num_90=int((held_D < 0.9).sum()) + 1 if total else 0,
            num_99=int((held_D < 0.99).sum()) + 1 if total else 0,
            num_rows=state.num_rows,
            num_nonfinite=self._num_nonfinite,
        )

    def _fit(self, width: int, num_nonfinite: int) -> None:
        if self._width is not None:
            same_width(self._width, width)
        self._width = width
        self._num_nonfinite += num_nonfinite
