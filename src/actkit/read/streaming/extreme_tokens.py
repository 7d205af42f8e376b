"""What makes the first token extreme: attention sinks, drained values, a peak in the stream.

Shapes: N rows, H heads, G key-value heads, S keys, K head width, D width, X bins in use.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Self, final

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.run.recording import Rows
from actkit.read._base import JointReading
from actkit.read._sums import added, median_of_counts, mergeable, same_width
from actkit.read.streaming._joint import floating, lengths, usable_rows

_BINS = 1 << 15  # the non-negative bfloat16 numbers, in rising order of their bits
_MOST = 1.01  # a probability may be rounded up, most of all in bfloat16


@dataclass(frozen=True, slots=True)
class ExtremeTokensResult:
    """One layer's extreme-token phenomena; NaN where no first token or no other was usable.

    Attributes:
        sink_H: (H,) float64 mean attention on the first token, over all later tokens.
        dormant_H: (H,) whether a head is dormant, which is a sink above the threshold.
        drain_G: (G,) mean length of first tokens' values / median length of all others'; below 1
            they are drained.
        peak: Mean length of first tokens' states / median length of all others'.
        num_first: First tokens that were used.
        num_rows: Other tokens that were used.
        num_nonfinite: Tokens that were left out since they hold NaN or infinity.
    """

    sink_H: Tensor
    dormant_H: Tensor
    drain_G: Tensor
    peak: float
    num_first: int
    num_rows: int
    num_nonfinite: int

    def summary(self) -> dict[str, float]:
        """Return the numbers that fit one line of a report, means over heads."""
        return {
            "sink": float(self.sink_H.mean()),
            "share_dormant": float(self.dormant_H.double().mean()) if self.num_rows else nan,
            "drain": float(self.drain_G.mean()),
            "peak": self.peak,
            "num_first": self.num_first,
            "num_rows": self.num_rows,
            "num_nonfinite": self.num_nonfinite,
        }


def active_dormant_index(one: ExtremeTokensResult, other: ExtremeTokensResult) -> Tensor:
    """Return how far each head's sink differs between two domains, (H,) in [0, 1].

    Args:
        one: What a layer does in one domain, prose for example.
        other: What the same layer does in another, code for example.

    Raises:
        InputError: The results are of layers with unequal numbers of heads.
    """
    same_width(len(one.sink_H), len(other.sink_H), "number of heads")
    return (one.sink_H - other.sink_H).abs()


@dataclass(frozen=True, slots=True)
class _ExtremeTokensState:
    """Sums and counts; lengths are those of a token's G values, then of its state."""

    num_first: int
    num_rows: int
    num_nonfinite: int
    sink_H: Tensor  # float64 sums over later tokens
    first_L: Tensor  # float64 sums over first tokens of the G + 1 lengths
    keys_X: Tensor  # which bins of which of these lengths are in use by later tokens
    counts_X: Tensor

    @classmethod
    def of(
        cls, sink_NH: Tensor, length_NL: Tensor, first_N: Tensor, num_nonfinite: int
    ) -> "_ExtremeTokensState":
        length_ML = length_NL[~first_N]
        bits_ML = length_ML.bfloat16().view(torch.int16).long()
        keys_ML = bits_ML + _BINS * torch.arange(length_NL.shape[1], device=length_NL.device)
        keys_X, counts_X = torch.unique(keys_ML, return_counts=True)
        sums = sink_NH[~first_N].sum(0), length_NL[first_N].sum(0)
        return cls(int(first_N.sum()), len(length_ML), num_nonfinite, *sums, keys_X, counts_X)

    def __add__(self, other: "_ExtremeTokensState") -> "_ExtremeTokensState":
        same_width(len(self.sink_H), len(other.sink_H), "number of heads")
        same_width(len(self.first_L), len(other.first_L), "number of value heads")
        keys_X, place = torch.unique(torch.cat([self.keys_X, other.keys_X]), return_inverse=True)
        counts_X = torch.zeros_like(keys_X)
        counts_X.index_add_(0, place, torch.cat([self.counts_X, other.counts_X]))
        return _ExtremeTokensState(
            self.num_first + other.num_first,
            self.num_rows + other.num_rows,
            self.num_nonfinite + other.num_nonfinite,
            self.sink_H + other.sink_H,
            self.first_L + other.first_L,
            keys_X,
            counts_X,
        )

    def medians(self) -> Tensor:
        """Return the median of each length, the mean of the middle two; NaN without rows."""
        medians_L = torch.full_like(self.first_L, nan)
        for which in range(len(medians_L) if self.num_rows else 0):
            own_X = self.keys_X // _BINS == which
            bits_X = (self.keys_X[own_X] % _BINS).to(torch.int16)
            values_X = bits_X.view(torch.bfloat16).double()
            medians_L[which] = median_of_counts(values_X, self.counts_X[own_X])
        return medians_L


@method(source="Guo et al. 2024, arXiv:2410.13835, sections 1 and 3")
@final
@dataclass(eq=False)
class ExtremeTokens(JointReading):
    """Read a layer's attention sinks, value-state drains, residual peak and dormant heads.

    Give it a layer's `attn_probs`, `v` and `resid_post`, in this order. The paper reads one text;
    here sinks and first tokens' lengths are means over all texts, and the medians are over all
    their other tokens. Lengths are counted after rounding to bfloat16, so medians merge exactly
    and are right to 2^-8 = 0.4 % of themselves. Where heads share values, drains are of these.

    Args:
        threshold: Mean attention on the first token above which a head is dormant.

    Example:
        >>> probs_NHS = torch.tensor([[[1.0, 0.0]], [[0.75, 0.25]]])
        >>> v_NGK, stream_ND = torch.tensor([[[1.0]], [[4.0]]]), torch.tensor([[6.0], [2.0]])
        >>> reading = ExtremeTokens()
        >>> one_text = Rows.of(torch.ones(1, 2, dtype=torch.bool)).flat()
        >>> reading.update([probs_NHS, v_NGK, stream_ND], one_text)
        >>> found = reading.result()
        >>> found.sink_H.tolist(), found.drain_G.tolist(), found.peak
        ([0.75], [0.25], 3.0)
    """

    threshold: float = 0.5
    _state: _ExtremeTokensState | None = field(default=None, init=False, repr=False)

    def update(self, acts: Sequence[Tensor], rows: Rows) -> None:
        """Take (N, H, S) attention, (N, G, K) values, the (N, D) stream, and their (N,) rows.

        Raises:
            InputError: The axes or rows do not fit, or the first are no probabilities.
        """
        shapes = [tuple(x.shape) for x in acts]
        rowed = all(s[:1] == rows.valid.shape for s in shapes)
        if [len(s) for s in shapes] != [3, 3, 2] or not rowed or not shapes[0][2]:
            raise InputError(
                "need attn_probs (N, H, S), v (N, G, K) and resid_post (N, D) with a row each, "
                f"got shapes {shapes} and rows of shape {tuple(rows.valid.shape)}"
            )
        floating(acts)
        probs_NHS, v_NGK, stream_ND = acts
        sink_NH = probs_NHS[:, :, 0].detach().double().cpu()
        length_NL = torch.cat([lengths(v_NGK), lengths(stream_ND)[:, None]], 1)
        finite_N = sink_NH.isfinite().all(1) & length_NL.isfinite().all(1)
        keep_N, num_nonfinite = usable_rows(rows, finite_N, skip_first=False)
        sink_NH, length_NL = sink_NH[keep_N], length_NL[keep_N]
        if ((sink_NH < 0) | (sink_NH > _MOST)).any():
            raise InputError(
                "attention probabilities must lie in [0, 1] (attn_probs, not attn_scores), got "
                f"{float(sink_NH.min()):.3g} to {float(sink_NH.max()):.3g}"
            )
        first_N = rows.position.cpu()[keep_N] == 0
        self._state = added(
            self._state, _ExtremeTokensState.of(sink_NH, length_NL, first_N, num_nonfinite)
        )

    def merge(self, other: Self) -> Self:
        """Take in another reading's rows; return self."""
        mergeable(self, other)
        self._state = added(self._state, other._state)
        return self

    def result(self) -> ExtremeTokensResult:
        """Return the means and ratios over all rows so far."""
        none = torch.zeros(0, 0), torch.zeros(0, 1), torch.zeros(0, dtype=torch.bool)
        state = self._state or _ExtremeTokensState.of(*none, 0)
        sink_H = state.sink_H / (state.num_rows or nan)
        ratio_L = state.first_L / (state.num_first or nan) / state.medians()
        return ExtremeTokensResult(
            sink_H=sink_H,
            dormant_H=sink_H > self.threshold,
            drain_G=ratio_L[:-1],
            peak=float(ratio_L[-1]),
            num_first=state.num_first,
            num_rows=state.num_rows,
            num_nonfinite=state.num_nonfinite,
        )
