"""Which few activations are thousands of times larger than the rest, and where they are.

Shapes: N rows, D width, C candidate rows.
"""

from dataclasses import dataclass, field
from heapq import nsmallest
from math import inf, nan
from typing import NamedTuple, Self, final

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.run.recording import Rows
from actkit.read._base import Reading
from actkit.read._sums import added, median_of_counts, mergeable, same_width, usable

_BINS = 1 << 15  # the non-negative bfloat16 numbers, in rising order of their bits


class Peak(NamedTuple):
    """One activation: its signed value, and the unit, sample, position and token it is at."""

    value: float
    unit: int
    sample: int
    position: int
    token: int


@dataclass(frozen=True, slots=True)
class MassiveResult:
    """The largest activations, in the activations' units; NaN where no row was usable.

    Attributes:
        top: The largest activations by magnitude, largest first; of equals the earliest.
        ratios: |value| / median of each of them; infinite if the median is 0.
        median: Median magnitude of all entries, to 0.4 % of itself.
        limit: The magnitude from which an activation counts as massive.
        num_massive: Number of massive entries, counted after rounding to bfloat16.
        massive_units: The units that were massive at least once, largest peak first.
        peak_D: (D,) float64 largest magnitude of each unit.
        num_rows: Rows that were used.
        num_nonfinite: Rows that were left out since they hold NaN or infinity.
    """

    top: tuple[Peak, ...]
    ratios: tuple[float, ...]
    median: float
    limit: float
    num_massive: int
    massive_units: tuple[int, ...]
    peak_D: Tensor
    num_rows: int
    num_nonfinite: int

    def summary(self) -> dict[str, float]:
        """Return the numbers that fit one line of a report."""
        return {
            "largest": abs(self.top[0].value) if self.top else nan,
            "largest_unit": self.top[0].unit if self.top else -1,
            "largest_position": self.top[0].position if self.top else -1,
            "ratio_to_median": self.ratios[0] if self.top else nan,
            "median": self.median,
            "num_massive": self.num_massive,
            "num_massive_units": len(self.massive_units),
            "num_rows": self.num_rows,
            "num_nonfinite": self.num_nonfinite,
        }


@dataclass(frozen=True, slots=True)
class _MassiveState:
    num_rows: int
    counts: Tensor  # (bins,) int64
    peak_D: Tensor
    top: tuple[Peak, ...]
    k: int
    num_nonfinite: int

    @classmethod
    def of(cls, acts_ND: Tensor, rows: Rows, k: int, num_nonfinite: int) -> "_MassiveState":
        size_ND = acts_ND.abs()
        if not size_ND.numel():
            peak_D = torch.zeros(size_ND.shape[1], dtype=torch.float64)
            return cls(0, torch.zeros(_BINS, dtype=torch.long), peak_D, (), k, num_nonfinite)
        bits = size_ND.bfloat16().view(torch.int16).flatten()
        counts = torch.bincount(bits, minlength=_BINS).cpu()
        peak_D = size_ND.amax(0).double().cpu()
        top = _top(acts_ND, size_ND, rows, k)
        return cls(len(acts_ND), counts, peak_D, top, k, num_nonfinite)

    def __add__(self, other: "_MassiveState") -> "_MassiveState":
        same_width(len(self.peak_D), len(other.peak_D))
        return _MassiveState(
            self.num_rows + other.num_rows,
            self.counts + other.counts,
            self.peak_D.maximum(other.peak_D),
            tuple(nsmallest(self.k, self.top + other.top, key=_rank)),
            self.k,
            self.num_nonfinite + other.num_nonfinite,
        )


def _rank(peak: Peak) -> tuple[float, int, int, int]:
    return (-abs(peak.value), peak.sample, peak.position, peak.unit)


def _top(acts_ND: Tensor, size_ND: Tensor, rows: Rows, k: int) -> tuple[Peak, ...]:
    """Return the k first entries by `_rank`.

    They all lie in the k first rows by (largest entry, sample, position): each of these rows
    holds an entry that ranks before any entry of a later row.
    """
    largest_N = size_ND.amax(1)
    least = largest_N.topk(min(k, len(largest_N))).values[-1]
    index_C = (largest_N >= least).nonzero()[:, 0].to(rows.valid.device)  # over k if some tie
    for key_N in (rows.position, rows.sample):
        index_C = index_C[key_N[index_C].argsort(stable=True)]
    first_C = largest_N[index_C.to(largest_N.device)].argsort(descending=True, stable=True)[:k]
    index_C = index_C[first_C.sort().values.to(index_C.device)]
    here, there_C = rows[index_C], index_C.to(acts_ND.device)
    entries = size_ND[there_C].flatten().argsort(descending=True, stable=True)[:k]
    return tuple(
        Peak(
            float(acts_ND[there_C[row], unit]),
            unit,
            int(here.sample[row]),
            int(here.position[row]),
            int(here.token[row]),
        )
        for row, unit in (divmod(i, acts_ND.shape[1]) for i in entries.tolist())
    )


@method(source="Sun et al. 2024, arXiv:2402.17762, section 2")
@final
@dataclass(eq=False)
class Massive(Reading):
    """Read the largest activations, and which of them are massive.

    As in the paper an activation is massive if its magnitude is above 100 and at least 1,000
    times the median magnitude of its site; here the median is over all rows that were read, not
    over one text. Magnitudes are counted after rounding to bfloat16, so counts are exact and
    merge exactly, and the median is right to 2^-8 = 0.4 % of itself (exactly right for bfloat16
    activations). The first token of a text is not left out: it is where massive activations
    live.

    Args:
        k: How many of the largest activations to name (>= 1).
        floor: Magnitude that a massive activation exceeds.
        ratio: Multiple of the median magnitude that it reaches.

    Raises:
        InputError: `k` is below 1.

    Example:
        >>> acts_ND = torch.tensor([[1.0, -3000.0], [0.5, 2.0]])
        >>> reading = Massive(k=1)
        >>> reading.update(acts_ND, Rows.of(torch.ones(1, 2, dtype=torch.bool)).flat())
        >>> reading.result().top, reading.result().ratios, reading.result().massive_units
        ((Peak(value=-3000.0, unit=1, sample=0, position=0, token=-1),), (2000.0,), (1,))
    """

    k: int = 3
    floor: float = 100.0
    ratio: float = 1000.0
    _state: _MassiveState | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check k."""
        if self.k < 1:
            raise InputError(f"k must be at least 1, got {self.k}")

    def update(self, acts_ND: Tensor, rows: Rows) -> None:
        """Take (N, D) activations and their (N,) rows."""
        acts_ND, rows, num_nonfinite = usable(acts_ND, rows)
        self._state = added(self._state, _MassiveState.of(acts_ND, rows, self.k, num_nonfinite))

    def merge(self, other: Self) -> Self:
        """Take in another reading's rows; return self."""
        mergeable(self, other)
        self._state = added(self._state, other._state)
        return self

    def result(self) -> MassiveResult:
        """Return the largest activations of all rows so far."""
        empty = torch.empty(0, 0), Rows.of(torch.ones(1, 0, dtype=torch.bool)).flat()
        state = self._state or _MassiveState.of(*empty, self.k, 0)
        values = torch.arange(_BINS, dtype=torch.int16).view(torch.bfloat16).double()
        median = median_of_counts(values, state.counts) if state.num_rows else nan
        limit = max(self.floor, self.ratio * median) if state.num_rows else nan
        massive = (values > self.floor) & (values >= limit)
        peak_D = state.peak_D if state.num_rows else state.peak_D * nan
        units = ((peak_D > self.floor) & (peak_D >= limit)).nonzero()[:, 0]
        order = peak_D[units].argsort(descending=True, stable=True)
        return MassiveResult(
            top=state.top,
            ratios=tuple(abs(p.value) / median if median else inf for p in state.top),
            median=median,
            limit=limit,
            num_massive=int(state.counts[massive].sum()),
            massive_units=tuple(units[order].tolist()),
            peak_D=peak_D,
            num_rows=state.num_rows,
            num_nonfinite=state.num_nonfinite,
        )
