from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag, solve_discrete_lyapunov
from scipy.stats import kstest, mannwhitneyu
from torch import Tensor

from actkit.core.errors import InputError
from actkit.read.information.integration import (
    compare_groups,
    integration,
    principal_units,
    span_scores,
)
from tests._evidence import Evidence
from tests.contract import acts, check_seeded, check_unchanged

PAPER = pytest.mark.paper("can-consciousness-be-observed")
COUPLING = np.array([[0.4, 0.5, 0.0], [0.3, 0.2, 0.1], [0.2, 0.0, 0.6]])
NOISE = np.array([[1.0, 0.3, 0.0], [0.3, 2.0, -0.4], [0.0, -0.4, 0.5]])


def autoregressive(coupling: np.ndarray, noise: np.ndarray, num: int, seed: int) -> Tensor:
    """Return x(t) = A x(t-1) + e(t), shifted and with a scale for each unit, (T, n)."""
    gen = torch.Generator().manual_seed(seed)
    width, burn = len(coupling), 200
    noise_Tn = torch.randn(num + burn, width, generator=gen, dtype=torch.float64).numpy()
    noise_Tn = noise_Tn @ np.linalg.cholesky(noise).T
    series = [noise_Tn[0]]
    for shock in noise_Tn[1:]:
        series.append(coupling @ series[-1] + shock)
    scale = 10.0 ** np.arange(width)
    return torch.from_numpy(np.stack(series[burn:]) * scale + 7)


def closed_form(coupling: np.ndarray, noise: np.ndarray) -> tuple[float, tuple[int, ...]]:
    """Return the stochastic interaction of the weakest bipartition, and its first part."""
    now = solve_discrete_lyapunov(coupling, noise)
    lagged = coupling @ now

    def half_log(part: tuple[int, ...]) -> float:
        own, cross = now[np.ix_(part, part)], lagged[np.ix_(part, part)]
        left = own - cross @ np.linalg.inv(own) @ cross.T
        return float(np.log(np.linalg.det(left)) / 2)

    units = set(range(len(coupling)))
    whole = half_log(tuple(units))
    assert np.isclose(whole, np.log(np.linalg.det(noise)) / 2), "the past leaves the noise alone"
    found = []
    for size in range(1, len(units)):
        for part in combinations(sorted(units), size):
            rest = tuple(units - set(part))
            phi = half_log(part) + half_log(rest) - whole
            found.append((phi / min(len(part), len(rest)), phi, part))
    return min(found)[1:]


@PAPER
@pytest.mark.parametrize("seed", range(3))
def test_coupled_units_reach_the_closed_form(seed: int, evidence: Evidence) -> None:
    truth, part = closed_form(COUPLING, NOISE)
    found = integration(autoregressive(COUPLING, NOISE, 20_000, seed))
    assert part in found.parts
    evidence(f"stochastic interaction over its closed form, seed {seed}",
             measured=found.phi / truth, equals=1, tolerance=0.05)  # fmt: skip


@PAPER
@pytest.mark.parametrize("seed", range(3))
def test_independent_blocks_are_not_integrated(seed: int, evidence: Evidence) -> None:
    coupling, noise = block_diag([[0.9]], [[-0.6]]), block_diag([[1.0]], [[3.0]])
    found = integration(autoregressive(coupling, noise, 20_000, seed))
    evidence(f"phi of two independent AR(1) units, seed {seed} (nats)", measured=found.phi,
             at_most=0.01)  # fmt: skip
    found = integration(
        autoregressive(block_diag(COUPLING, COUPLING.T), block_diag(NOISE, NOISE), 20_000, seed)
    )
    assert found.parts == ((0, 1, 2), (3, 4, 5)) and 0 <= found.phi < 0.01


def test_a_cut_through_the_middle_may_cost_more_than_one_unit() -> None:
    coupling = 0.18 + block_diag(np.full((2, 2), 0.02), np.full((2, 2), 0.02))
    truth, part = closed_form(coupling, np.eye(4))
    found = integration(autoregressive(coupling, np.eye(4), 20_000, 0))
    assert part in found.parts
    assert found.parts == ((0, 1), (2, 3)), "it costs 0.168 nats, to cut off one unit 0.143"
    assert found.phi == pytest.approx(truth, rel=0.05)


def test_units_may_have_any_scale_offset_and_order() -> None:
    series_Tn = autoregressive(COUPLING, NOISE, 301, 0)
    found = integration(series_Tn)
    check_unchanged(lambda: integration(series_Tn), series_Tn)
    again = integration(series_Tn[:, [2, 0, 1]] * torch.tensor([-3.0, 0.01, 5]) - 4)
    assert again.phi == pytest.approx(found.phi, rel=1e-9)
    units = {frozenset((2, 0, 1)[i] for i in part) for part in again.parts}
    assert units == set(map(frozenset, found.parts))


def test_principal_units_are_shared_axes_with_falling_variance() -> None:
    sequences = [acts(13), acts(5, seed=1) * 2, acts(9, seed=2) - 3]
    units = principal_units(sequences, 3)
    assert [tuple(u.shape) for u in units] == [(13, 3), (5, 3), (9, 3)]
    rows_N3 = torch.cat(units)
    torch.testing.assert_close(rows_N3.mean(0), torch.zeros(3, dtype=torch.float64))
    values = torch.linalg.eigvalsh(torch.cat(sequences).T.cov()).flip(0)[:3]
    torch.testing.assert_close(rows_N3.T.cov(), values.diag(), rtol=1e-9, atol=1e-9)


def test_comparison_equals_the_rank_test() -> None:
    labels_N = torch.arange(41) % 3 == 0
    scores_N = (10 * acts(41, 1)[:, 0]).round()  # with ties
    found = compare_groups(scores_N, labels_N, num_permutations=4999)
    inside, outside = scores_N[labels_N], scores_N[~labels_N]
    test = mannwhitneyu(inside.numpy(), outside.numpy(), method="asymptotic")
    assert found.auc == pytest.approx(test.statistic / (len(inside) * len(outside)))
    assert found.p_value == pytest.approx(test.pvalue, abs=0.01) and 0.01 < found.p_value < 0.5
    assert compare_groups(-scores_N, labels_N).auc == pytest.approx(1 - found.auc)
    check_seeded(lambda seed: compare_groups(scores_N, labels_N, seed=seed))


def test_a_span_classifier_finds_what_means_tell_and_no_more() -> None:
    labels_N = torch.arange(42) % 2 == 0
    sequences = [acts(5 + i % 4, 7, seed=i) + 2 * float(y) for i, y in enumerate(labels_N)]
    assert compare_groups(span_scores(sequences, labels_N), labels_N).auc > 0.9
    gen = torch.Generator().manual_seed(0)
    shuffled_N = labels_N[torch.randperm(42, generator=gen)]
    assert compare_groups(span_scores(sequences, shuffled_N), shuffled_N).p_value > 0.05


def test_variants_of_one_text_share_a_fold() -> None:
    """Each text's own variant has the other label, so a classifier that saw it would be misled."""
    texts = [acts(6, 3, seed=i) for i in range(20)]
    sequences = [text + sign * 0.01 for text in texts for sign in (1, -1)]
    labels_N = torch.tensor([True, False] * 20)
    apart = span_scores(sequences, labels_N)
    together = span_scores(sequences, labels_N, groups=[i // 2 for i in range(40)])
    assert compare_groups(together, labels_N).auc > compare_groups(apart, labels_N).auc


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"at least 2n \+ 2 times, got shape \(7, 3\)"):
        integration(acts(7, 3))
    with pytest.raises(InputError, match=r"2 to 12 units .* got shape \(99, 13\)"):
        integration(acts(99, 13))
    with pytest.raises(InputError, match="got rank 4 of 6"):
        integration(acts(37, 2)[:, [0, 1, 0]])
    with pytest.raises(InputError, match="linearly independent"):
        integration(acts(37, 3) * torch.tensor([1, 0, 1]))
    with pytest.raises(InputError, match="must be finite"):
        integration(acts(37, 3) * torch.tensor([1, torch.nan, 1]))
    with pytest.raises(InputError, match="at least 6 directions, got 5"):
        principal_units([acts(37)], 6)
    with pytest.raises(InputError, match=r"one D, got \[\(37, 5\), \(37, 4\)\]"):
        principal_units([acts(37), acts(37, 4)])
    with pytest.raises(InputError, match="1 of 2 are not"):
        span_scores([acts(3), acts(3) / 0], torch.tensor([True, False]))
    with pytest.raises(InputError, match="one for each of 3, got 1 true in shape"):
        compare_groups(torch.zeros(3), torch.tensor([True, False]))
    with pytest.raises(InputError, match="of both kinds"):
        compare_groups(torch.zeros(3), torch.tensor([False] * 3))
    with pytest.raises(InputError, match="1 of 3 are not"):
        compare_groups(torch.tensor([1, 2, torch.nan]), torch.tensor([True, False, False]))


@PAPER
def test_p_values_are_uniform_where_labels_mean_nothing(evidence: Evidence) -> None:
    """The bounds are what 999 of 1,000 samples of 1,000 uniform values stay within."""
    scores_N = acts(41, 1)[:, 0]
    labels_N = torch.arange(41) % 2 == 0
    gen = torch.Generator().manual_seed(0)
    p_values = []
    for seed in range(1000):
        shuffled_N = labels_N[torch.randperm(41, generator=gen)]
        p_values.append(compare_groups(scores_N, shuffled_N, 199, seed).p_value)
    evidence("distance of p-values under shuffled labels from uniform (Kolmogorov-Smirnov)",
             measured=kstest(p_values, "uniform").statistic, at_most=0.062)  # fmt: skip
    evidence("share of p-values of at most 0.05 under shuffled labels",
             measured=np.mean(np.array(p_values) <= 0.05), equals=0.05,
             tolerance=0.023)  # fmt: skip
