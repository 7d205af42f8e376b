"""Statistics over pairs and of ranks: bootstrap intervals, Spearman's correlation.

Shapes: B pairs, R resamples, C rows that are compared, N values.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def resampled_means(values_xB: Tensor, num: int = 1000, seed: int = 0) -> Tensor:
    """Return means over pairs drawn with replacement, (..., R).

    The same seed and number of pairs draw the same pairs, so that statistics of several means
    can be formed draw by draw.
    """
    pairs = values_xB.shape[-1]
    gen = torch.Generator().manual_seed(seed)
    drawn_RB = torch.randint(pairs, (num, pairs), generator=gen)
    counts_RB = torch.zeros(num, pairs).scatter_add_(1, drawn_RB, torch.ones(num, pairs))
    return values_xB.double().cpu() @ (counts_RB.double() / pairs).mT


def interval(statistic_xR: Tensor, share: float = 0.95) -> tuple[Tensor, Tensor]:
    """Return the ends of the middle share of a statistic's resamples."""
    tail = (1 - share) / 2
    low, high = statistic_xR.quantile(statistic_xR.new_tensor([tail, 1 - tail]), dim=-1)
    return low, high


def spearman(first_N: Sequence[float] | Tensor, second_N: Sequence[float] | Tensor) -> float:
    """Return Spearman's rank correlation, in [-1, 1]; ties share the mean of their ranks.

    NaN, with SciPy's warning, where one of the two does not vary.

    Example:
        >>> round(spearman([1.0, 2.0, 9.0], [3.0, 7.0, 8.0]), 6)
        1.0
    """
    from scipy.stats import spearmanr

    sides = (x.cpu().numpy() if isinstance(x, Tensor) else x for x in (first_N, second_N))
    return float(spearmanr(*sides).statistic)


def rank_correlations(values_CN: Tensor) -> Tensor:
    """Return Spearman's rank correlations of the rows, (C, C) float64; NaN for constant rows."""
    from scipy.stats import rankdata

    ranks = torch.as_tensor(rankdata(values_CN.cpu().numpy(), axis=-1))
    ranks = ranks - ranks.mean(-1, keepdim=True)
    unit: Tensor = ranks / ranks.norm(dim=-1, keepdim=True)
    return unit @ unit.mT
