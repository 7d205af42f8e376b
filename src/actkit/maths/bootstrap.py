"""Bootstrap intervals over pairs of prompts.

Shapes: B pairs, R resamples.
"""

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
