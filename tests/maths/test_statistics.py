"""Rank correlations and resampled means against sums in plain Python."""

import math

import pytest
import torch
from torch import Tensor

from actkit.maths.statistics import interval, rank_correlations, resampled_means, spearman


def ranks(values: list[float]) -> list[float]:
    """Return each value's rank from 1 on, ties sharing the mean of theirs, by counting."""
    below = [sum(other < x for other in values) for x in values]
    level = [values.count(x) for x in values]
    return [b + (n + 1) / 2 for b, n in zip(below, level, strict=True)]


def by_hand(first: Tensor, second: Tensor) -> float:
    """Return Pearson's correlation of the ranks."""
    a, b = (ranks(x.tolist()) for x in (first, second))
    mean = (len(a) + 1) / 2
    cov = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    sizes = (sum((x - mean) ** 2 for x in side) for side in (a, b))
    return cov / math.sqrt(math.prod(sizes))


@pytest.mark.parametrize("levels", [3, 1000])
def test_rank_correlations_with_and_without_ties(levels: int) -> None:
    gen = torch.Generator().manual_seed(0)
    values_CN = torch.randint(levels, (3, 20), generator=gen).double()
    expected = [[by_hand(a, b) for b in values_CN] for a in values_CN]
    torch.testing.assert_close(rank_correlations(values_CN), torch.tensor(expected).double())
    for row, a in zip(expected, values_CN, strict=True):
        assert [spearman(a, b) for b in values_CN] == pytest.approx(row, abs=1e-6)
        assert [spearman(a.tolist(), b.tolist()) for b in values_CN] == pytest.approx(row, abs=1e-6)


def test_a_constant_row_has_no_correlation() -> None:
    found = rank_correlations(torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]]))
    assert found.isnan().tolist() == [[True, True], [True, False]]


def test_resampled_means_spread_as_the_mean_does() -> None:
    values_B = torch.arange(50.0)
    means_R = resampled_means(values_B, num=4000)
    assert means_R.shape == (4000,)
    assert float(means_R.mean()) == pytest.approx(24.5, abs=0.15)
    expected = float(values_B.std(correction=0)) / math.sqrt(50)
    assert float(means_R.std()) == pytest.approx(expected, rel=0.05)


def test_an_interval_leaves_equal_tails() -> None:
    low, high = interval(torch.arange(1001.0).double(), share=0.9)
    assert (float(low), float(high)) == pytest.approx((50, 950))
