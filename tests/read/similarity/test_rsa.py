from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from actkit.core.errors import InputError
from actkit.read.similarity.rsa import METRICS, rsa
from tests.contract import acts, check_seeded


def pair(num: int = 61) -> tuple[Tensor, Tensor]:
    x_ND = acts(num, 7)
    return x_ND, (x_ND[:, 2:6] - 3) * 2 + acts(num, 4, seed=1)


def dissimilarities(x_ND: Tensor, metric: str) -> Any:
    rows = x_ND.numpy()
    if metric == "dot":
        return -(rows @ rows.T)[np.triu_indices(len(rows), 1)]
    return pdist(rows, metric)


@pytest.mark.parametrize("num", [3, 61])
@pytest.mark.parametrize("metric", METRICS)
def test_both_correlations_equal_those_of_all_pairs(metric: str, num: int) -> None:
    x_ND, y_NE = pair(num)
    one, two = dissimilarities(x_ND, metric), dissimilarities(y_NE, metric)
    assert rsa(x_ND, y_NE, metric) == pytest.approx(pearsonr(one, two).statistic, abs=1e-10)
    ranked = rsa(x_ND, y_NE, metric, ranks=True)
    assert ranked == pytest.approx(spearmanr(one, two).statistic, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_streams_say_the_same_as_tensors(metric: str) -> None:
    x_ND, y_NE = pair()
    streamed = (b for b in torch.split(x_ND, [1, 20, 40]))
    assert rsa(streamed, y_NE, metric) == pytest.approx(rsa(x_ND, y_NE, metric), rel=1e-11)
    for ranks in (False, True):
        assert rsa(x_ND, 3 * x_ND, metric, ranks) == pytest.approx(1, abs=1e-12)


def test_ranks_of_a_sample_are_near_those_of_all_and_follow_the_seed() -> None:
    x_ND, y_NE = pair(700)
    whole = rsa(x_ND, y_NE, "sqeuclidean", ranks=True)
    sampled = rsa(x_ND, y_NE, "sqeuclidean", ranks=True, num_samples=300)
    assert sampled == pytest.approx(whole, abs=0.05) and sampled != whole
    again = rsa(torch.split(x_ND, 99), y_NE, "sqeuclidean", ranks=True, num_samples=300)
    assert again == pytest.approx(sampled, rel=1e-12)
    check_seeded(lambda seed: rsa(x_ND, y_NE, ranks=True, num_samples=300, seed=seed))


def test_unrelated_representations_do_not_correlate() -> None:
    gen = torch.Generator().manual_seed(0)
    x_ND, y_NE = (torch.randn(500, 20, generator=gen) for _ in range(2))
    for ranks in (False, True):
        assert abs(rsa(x_ND, y_NE, "sqeuclidean", ranks)) < 2 / 500**0.5


@pytest.mark.parametrize("ranks", [False, True])
@pytest.mark.parametrize(
    ("x", "metric", "rule"),
    [
        (acts(2, 3), "dot", "at least 3 rows, got 2"),
        (torch.eye(5), "sqeuclidean", "vary"),
        (torch.full((5, 3), 2.0), "sqeuclidean", "vary"),
        (torch.zeros(5, 3), "cosine", "direction, 5 have none"),
        (torch.full((5, 3), 0.1), "correlation", "direction, 5 have none"),
        (torch.full((5, 3), torch.nan), "correlation", "finite, 5 of 5"),
        (acts(5, 3), "euclid", "metric must be one of"),
        (acts(9, 3), "dot", r"rows must match, got shapes \(9, 3\) and \(5, 4\)"),
    ],
    ids=["two", "equidistant", "equal", "zero", "flat", "nan", "metric", "rows"],
)
def test_what_has_no_dissimilarities_is_refused(
    x: Tensor, metric: str, rule: str, ranks: bool
) -> None:
    y_NE = acts(min(len(x), 5), 4)
    with pytest.raises(InputError, match=rule):
        rsa(x, y_NE, metric, ranks)


def test_two_rows_have_no_ranks() -> None:
    with pytest.raises(InputError, match="num_samples must be at least 3, got 2"):
        rsa(*pair(), ranks=True, num_samples=2)
