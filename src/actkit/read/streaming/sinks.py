"""Where attention rests: on the first token, on the previous one, on itself, or spread out.

Shapes: N rows (queries), H heads, S keys.
"""

from dataclasses import dataclass, field, replace
from math import nan
from typing import Self, final

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.run.recording import Rows
from actkit.read._base import Reading
from actkit.read._sums import added, mergeable, same_width, usable

_CHUNK = 1 << 18  # probabilities at a time: their logarithms stay in the cache
_MOST = 1.01  # a probability may be rounded up, most of all in bfloat16


@dataclass(frozen=True, slots=True)
class SinksResult:
    """Shares in [0, 1] of attention mass, means over queries; NaN where no query was usable.

    Attributes:
        first_H: (H,) float64 mean mass on the sample's first token.
        previous_H: (H,) mean mass on the token before the query.
        self_H: (H,) mean mass on the query's own token.
        entropy_H: (H,) mean entropy of attention in nats.
        spread_H: (H,) entropy as a share of the most that the visible keys allow.
        share_sinks: Share of heads whose mean mass on the first token is above the threshold.
        num_rows: Queries that were used.
        num_nonfinite: Queries that were left out since they hold NaN or infinity.
    """

    first_H: Tensor
    previous_H: Tensor
    self_H: Tensor
    entropy_H: Tensor
    spread_H: Tensor
    share_sinks: float
    num_rows: int
    num_nonfinite: int

    def summary(self) -> dict[str, float]:
        """Return the numbers that fit one line of a report, means over heads."""
        return {
            "first": float(self.first_H.mean()),
            "previous": float(self.previous_H.mean()),
            "self": float(self.self_H.mean()),
            "entropy": float(self.entropy_H.mean()),
            "spread": float(self.spread_H.mean()),
            "share_sinks": self.share_sinks,
            "num_rows": self.num_rows,
            "num_nonfinite": self.num_nonfinite,
        }


@dataclass(frozen=True, slots=True)
class _SinksState:
    num_rows: int
    sums_KH: Tensor  # float64: mass on the first, previous and own key, and entropy
    capacity: float  # sum over queries of log(number of visible keys)
    num_nonfinite: int

    @classmethod
    def of(cls, probs_NHS: Tensor, rows: Rows, num_nonfinite: int) -> "_SinksState":
        sums_KH = torch.zeros(4, probs_NHS.shape[1], dtype=torch.float64)
        position_N = rows.position.to(probs_NHS.device)
        for k, key_N in enumerate((torch.zeros_like(position_N), position_N - 1, position_N)):
            sums_KH[k] = _mass(probs_NHS, key_N).sum(0, dtype=torch.float64).cpu()
        capacity = 0.0
        for part_NHS in torch.split(probs_NHS, max(1, _CHUNK // max(1, probs_NHS[:1].numel()))):
            smallest = torch.finfo(part_NHS.dtype).tiny
            entropy_NH = -(part_NHS.clamp_min(smallest).log_() * part_NHS).sum(-1)
            sums_KH[3] += entropy_NH.sum(0, dtype=torch.float64).cpu()
            visible_N = (part_NHS.sum(1) > 0).sum(-1).clamp_min_(1)
            capacity += float(visible_N.double().log().sum())
        return cls(len(probs_NHS), sums_KH, capacity, num_nonfinite)

    def __add__(self, other: "_SinksState") -> "_SinksState":
        same_width(self.sums_KH.shape[1], other.sums_KH.shape[1], "number of heads")
        return _SinksState(
            self.num_rows + other.num_rows,
            self.sums_KH + other.sums_KH,
            self.capacity + other.capacity,
            self.num_nonfinite + other.num_nonfinite,
        )


def _mass(probs_NHS: Tensor, key_N: Tensor) -> Tensor:
    """Return the (N, H) mass on one key per query, 0 where there is no such key."""
    exists_N = (key_N >= 0) & (key_N < probs_NHS.shape[2])
    index_N = torch.arange(len(key_N), device=key_N.device)
    return probs_NHS[index_N, :, key_N.where(exists_N, 0)] * exists_N[:, None]


@method(source="Xiao et al. 2023, arXiv:2309.17453, section 3.1; Gu et al. 2024, arXiv:2410.10781")
@final
@dataclass(eq=False)
class Sinks(Reading):
    """Read each head's mean mass on the first, the previous and its own token, and its entropy.

    Give it `attn_probs`: (N, H, S), where key 0 is the sample's first token and key p the token
    at position p. A head is a sink if its mean mass on the first token is above 0.3, as in Gu et
    al.; they take the mean within a text and over all queries, here it is over all texts and
    leaves out the first queries, which have few other keys to look at. A key is visible to a
    query if any head of the layer gives it mass, which holds for causal, sliding and full
    attention.

    Args:
        min_position: First position whose query counts (>= 0).
        threshold: Mean mass on the first token above which a head is a sink.

    Raises:
        InputError: `min_position` is negative.

    Example:
        >>> probs_NHS = torch.tensor([[[1.0, 0.0]], [[0.75, 0.25]]])
        >>> reading = Sinks(min_position=1)
        >>> reading.update(probs_NHS, Rows.of(torch.ones(1, 2, dtype=torch.bool)).flat())
        >>> reading.result().first_H, reading.result().share_sinks
        (tensor([0.7500], dtype=torch.float64), 1.0)
    """

    min_position: int = 8
    threshold: float = 0.3
    _state: _SinksState | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the first position."""
        if self.min_position < 0:
            raise InputError(f"min_position must be at least 0, got {self.min_position}")

    def update(self, acts_ND: Tensor, rows: Rows) -> None:
        """Take (N, H, S) attention probabilities and their (N,) rows.

        Raises:
            InputError: The values are not probabilities, or the axes or heads do not fit.
        """
        late = replace(rows, valid=rows.valid & (rows.position >= self.min_position))
        probs_NHS, late, num_nonfinite = usable(acts_ND, late, dims=3)
        low, high = map(float, probs_NHS.aminmax()) if probs_NHS.numel() else (0.0, 0.0)
        if low < 0 or high > _MOST:
            raise InputError(
                "attention probabilities must lie in [0, 1] (attn_probs, not attn_scores), "
                f"got {low:.3g} to {high:.3g} in shape {tuple(acts_ND.shape)}"
            )
        self._state = added(self._state, _SinksState.of(probs_NHS, late, num_nonfinite))

    def merge(self, other: Self) -> Self:
        """Take in another reading's queries; return self."""
        mergeable(self, other)
        self._state = added(self._state, other._state)
        return self

    def result(self) -> SinksResult:
        """Return the means over all queries so far."""
        none = torch.empty(0, 0, 0), Rows.of(torch.ones(1, 0, dtype=torch.bool)).flat()
        state = self._state or _SinksState.of(*none, 0)
        first_H, previous_H, self_H, entropy_H = state.sums_KH / (state.num_rows or nan)
        share = float((first_H > self.threshold).double().mean())
        return SinksResult(
            first_H=first_H,
            previous_H=previous_H,
            self_H=self_H,
            entropy_H=entropy_H,
            spread_H=state.sums_KH[3] / (state.capacity or nan),
            share_sinks=share if state.num_rows else nan,
            num_rows=state.num_rows,
            num_nonfinite=state.num_nonfinite,
        )
