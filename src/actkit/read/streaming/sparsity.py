"""How sparse activations are: exact zeros, small values, firing rates and dead units.

Shapes: N rows, D width, K levels.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from math import nan, sqrt
from typing import Self, final

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.run.recording import Rows
from actkit.read._base import Reading
from actkit.read._sums import added, mergeable, same_width, usable

_EXACT = 1 << 24  # float32 counts every integer up to here


@dataclass(frozen=True, slots=True)
class SparsityResult:
    """Shares in [0, 1], from exact counts; NaN where no row was usable.

    Attributes:
        levels: The K magnitudes: 0, then the thresholds, in the units of the activations.
        below: For each level the share of entries with |x| <= level; at level 0 exact zeros.
        active_KD: (K, D) float64 share of rows in which a unit's |x| is above the level.
        num_dead: For each level the number of units that were never above it.
        hoyer: Mean of Hoyer's measure over the rows that are not zero throughout: 0 if all
            entries of a row are equal in size, 1 if one of them holds everything.
        num_rows: Rows that were used.
        num_nonfinite: Rows that were left out since they hold NaN or infinity.
    """

    levels: tuple[float, ...]
    below: tuple[float, ...]
    active_KD: Tensor
    num_dead: tuple[int, ...]
    hoyer: float
    num_rows: int
    num_nonfinite: int

    @property
    def zeros(self) -> float:
        """Return the share of entries that are exactly zero."""
        return self.below[0]

    def summary(self) -> dict[str, float]:
        """Return the numbers that fit one line of a report."""
        shares = {f"below_{v:g}": s for v, s in zip(self.levels, self.below, strict=True)}
        dead = {f"num_dead_{v:g}": n for v, n in zip(self.levels, self.num_dead, strict=True)}
        counts = {"num_rows": self.num_rows, "num_nonfinite": self.num_nonfinite}
        return {**shares, **dead, "hoyer": self.hoyer, **counts}


@dataclass(frozen=True, slots=True)
class _SparsityState:
    num_rows: int
    above_KD: Tensor  # int64
    hoyer: float
    num_hoyer: int
    num_nonfinite: int

    @classmethod
    def of(cls, acts_ND: Tensor, levels: tuple[float, ...], num_nonfinite: int) -> "_SparsityState":
        size_ND = acts_ND.abs()
        count_dtype = torch.float32 if len(acts_ND) < _EXACT else torch.float64
        mask_ND = torch.empty_like(size_ND)
        above = []
        for level in levels:  # a mask of floats is written and summed faster than one of bools
            torch.gt(size_ND, level, out=mask_ND)
            above.append(mask_ND.sum(0, dtype=count_dtype).long())
        hoyer_N = _hoyer(size_ND)
        return cls(
            len(acts_ND),
            torch.stack(above).cpu(),
            float(hoyer_N.sum(dtype=torch.float64)),
            len(hoyer_N),
            num_nonfinite,
        )

    def __add__(self, other: "_SparsityState") -> "_SparsityState":
        same_width(self.above_KD.shape[1], other.above_KD.shape[1])
        return _SparsityState(
            self.num_rows + other.num_rows,
            self.above_KD + other.above_KD,
            self.hoyer + other.hoyer,
            self.num_hoyer + other.num_hoyer,
            self.num_nonfinite + other.num_nonfinite,
        )


def _hoyer(size_ND: Tensor) -> Tensor:
    """Return (sqrt(D) - L1 / L2) / (sqrt(D) - 1) for every row that is not all zero."""
    root = sqrt(size_ND.shape[1])
    l2_N: Tensor = torch.linalg.vector_norm(size_ND, dim=1)
    used_N = l2_N > 0 if root > 1 else torch.zeros_like(l2_N, dtype=torch.bool)
    return (root - size_ND.sum(1)[used_N] / l2_N[used_N]) / (root - 1)


@method(source="Li et al. 2022, arXiv:2210.06313; Hoyer 2004, JMLR 5")
@final
@dataclass(eq=False)
class Sparsity(Reading):
    """Read the share of zero and of small entries, how often units fire, and which never do.

    As in the paper after a ReLU, where "above 0" and "not 0" are the same; elsewhere both signs
    count as active. Thresholds are for activations that are small but never zero (GELU, SiLU).

    Args:
        thresholds: Magnitudes beside 0, positive and rising, in the units of the activations.
        skip_first: Leave out the first token of every text, whose activations are unlike those
            of all other tokens in many language models.

    Raises:
        InputError: The thresholds are not positive and rising.

    Example:
        >>> acts_ND = torch.tensor([[0.0, 2.0], [0.0, 0.05]])
        >>> reading = Sparsity(thresholds=(0.1,))
        >>> reading.update(acts_ND, Rows.of(torch.ones(1, 2, dtype=torch.bool)).flat())
        >>> reading.result().below, reading.result().num_dead
        ((0.5, 0.75), (1, 1))
    """

    thresholds: tuple[float, ...] = (0.1,)
    skip_first: bool = True
    _state: _SparsityState | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the thresholds."""
        self.thresholds = tuple(self.thresholds)
        levels = (0.0, *self.thresholds)
        if not all(low < high for low, high in pairwise(levels)):
            raise InputError(f"thresholds must be positive and rising, got {self.thresholds}")

    def update(self, acts_ND: Tensor, rows: Rows) -> None:
        """Take (N, D) activations and their (N,) rows."""
        acts_ND, _, num_nonfinite = usable(acts_ND, rows, skip_first=self.skip_first)
        state = _SparsityState.of(acts_ND, (0.0, *self.thresholds), num_nonfinite)
        self._state = added(self._state, state)

    def merge(self, other: Self) -> Self:
        """Take in another reading's rows; return self."""
        mergeable(self, other)
        self._state = added(self._state, other._state)
        return self

    def result(self) -> SparsityResult:
        """Return the shares over all rows so far."""
        levels = (0.0, *self.thresholds)
        state = self._state or _SparsityState.of(torch.empty(0, 0), levels, 0)
        above = state.above_KD.sum(1).tolist()
        num_entries = state.num_rows * state.above_KD.shape[1]
        return SparsityResult(
            levels=levels,
            below=tuple((num_entries - n) / (num_entries or nan) for n in above),
            active_KD=state.above_KD.double() / (state.num_rows or nan),
            num_dead=tuple((state.above_KD == 0).sum(1).tolist()),
            hoyer=state.hoyer / (state.num_hoyer or nan),
            num_rows=state.num_rows,
            num_nonfinite=state.num_nonfinite,
        )
