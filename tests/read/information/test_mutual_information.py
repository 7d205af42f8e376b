from collections import Counter
from collections.abc import Callable
from functools import partial
from math import e, log, pi, sqrt

import numpy as np
import pytest
import torch
from scipy.special import digamma, logsumexp
from torch import Tensor

from actkit.core.errors import InputError
from actkit.read import _entropies
from actkit.read._estimators import ESTIMATORS, METHODS
from actkit.read.information.mutual_information import mutual_information
from tests._evidence import Evidence
from tests.contract import acts, check_seeded, check_unchanged

PAPER = pytest.mark.paper("adaptive-estimators-show-information")
LABELS_N = torch.arange(37) % 3
EACH = pytest.mark.parametrize("method", METHODS)


def gaussians(rho: float, num: int = 2001, width: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return uncentred pairs of unequal scales whose I(X; Y) is -width / 2 log(1 - rho^2)."""
    gen = torch.Generator().manual_seed(seed)
    x_ND, noise_ND = torch.randn(2, num, width, generator=gen, dtype=torch.float64)
    return 5 + 2 * x_ND, 30 * (rho * x_ND + sqrt(1 - rho**2) * noise_ND) - 1


def counted(codes_ND: Tensor) -> float:
    shares = np.array(list(Counter(map(tuple, codes_ND.tolist())).values())) / len(codes_ND)
    return float(-(shares * np.log(shares)).sum())


def mean_within(content: Callable[[Tensor], float]) -> float:
    """Return the mean over labels of what rows of that label hold."""
    classes_3N = torch.arange(3)[:, None].eq(LABELS_N)
    return sum(int(of_N.sum()) / 37 * content(of_N) for of_N in classes_3N)


@pytest.mark.parametrize("method", ["ebab", "binning"])
def test_bins_equal_counts_of_rows(method: str) -> None:
    acts_ND = acts(37, 2).round(decimals=1).relu()
    if method == "ebab":
        levels = sorted(set(acts_ND.flatten().tolist()))
        edges = [levels[k * len(levels) // 4] for k in (1, 2, 3)]
        codes_ND = torch.tensor([[sum(v >= x for x in edges) for v in row] for row in acts_ND])
        found = mutual_information(acts_ND, LABELS_N, method, num_bins=4)
    else:
        codes_ND = torch.tensor([[v // 1.5 for v in row] for row in acts_ND.tolist()])
        found = mutual_information(acts_ND, LABELS_N, method, bin_width=1.5)
    within = mean_within(lambda of_N: counted(codes_ND[of_N]))
    assert 1 < found.x == found.x_lower == pytest.approx(counted(codes_ND))
    assert 0 < found.y == pytest.approx(counted(codes_ND) - within)


@pytest.mark.parametrize("block", [64, 1 << 22], ids=["blocks of 1 row", "one block"])
def test_kernels_equal_the_sum_over_pairs(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_entropies, "_BLOCK", block)
    acts_ND = acts(37, 3)
    found = mutual_information(acts_ND, LABELS_N, "akde", noise=0.1)
    sigma = 0.1 * float(acts_ND.abs().max())
    square_NN = ((acts_ND[:, None] - acts_ND) ** 2).sum(-1).numpy() / sigma**2

    def bound(rows: Tensor, spread: int) -> float:
        logs = logsumexp(-square_NN[rows][:, rows] / spread, axis=1)
        return float(-(logs - log(int(rows.sum()))).mean())

    every, within = LABELS_N >= 0, mean_within(lambda of_N: bound(of_N, 2))
    assert found.x == pytest.approx(bound(every, 2)) and found.x_lower == pytest.approx(
        bound(every, 8)
    )
    assert found.x_lower < found.x and found.y == pytest.approx(bound(every, 2) - within)


def test_nearest_neighbours_equal_a_loop_over_rows() -> None:
    x_ND, y_NE = acts(41, 2), acts(41, 3, seed=1) + acts(41, 3)
    found = mutual_information(x_ND, y_NE, "kraskov", k=2)
    x, y = ((v - v.mean(0)) / v.std(0) for v in (x_ND, y_NE))
    apart_x, apart_y = ((v[:, None] - v).abs().amax(-1).numpy() for v in (x, y))
    terms = []
    for i in range(41):
        near = np.sort(np.maximum(apart_x[i], apart_y[i]))[2]  # the row itself comes first
        terms.append(sum(digamma((d[i] < near).sum()) for d in (apart_x, apart_y)))
    assert found.y == pytest.approx(digamma(2) + digamma(41) - np.mean(terms), abs=1e-6)


@PAPER
@pytest.mark.parametrize(("rho", "width"), [(0.0, 1), (0.5, 1), (0.9, 1), (0.6, 2)])
def test_kraskov_finds_the_information_of_gaussians(
    rho: float, width: int, evidence: Evidence
) -> None:
    """The tolerance is three standard deviations at correlation 0.9, of 100 seeds (0.030 nats)."""
    truth = -width / 2 * log(1 - rho**2)
    found = mutual_information(*gaussians(rho, width=width), "kraskov").y
    evidence(f"Kraskov's estimate for {width} Gaussian pairs of correlation {rho} (nats)",
             measured=found, equals=round(truth, 3), tolerance=0.09)  # fmt: skip
    assert found == ESTIMATORS["kraskov"](*gaussians(rho, width=width))


def test_neighbours_find_what_a_noisy_gaussian_layer_tells() -> None:
    acts_ND = gaussians(0, num=4001)[0]
    found = mutual_information(acts_ND, method="kraskov", noise=0.05)
    noise = 0.05 * float(acts_ND.abs().max())
    assert found.x == pytest.approx(log(1 + 4 / noise**2) / 2, abs=0.06)


def test_other_estimators_of_pairs_mean_what_they_say() -> None:
    x_ND, y_NE = gaussians(0.8)
    truth = -log(1 - 0.8**2) / 2
    assert ESTIMATORS["ebab"](x_ND, y_NE) == pytest.approx(truth, abs=0.1)
    assert ESTIMATORS["akde"](x_ND, y_NE) == pytest.approx(truth, abs=0.15)
    assert ESTIMATORS["binning"](x_ND, y_NE) > 3, "bins far smaller than the data saturate"
    exact = torch.arange(3.0).repeat(700)[:, None]
    for name in ("binning", "ebab", "akde"):
        assert ESTIMATORS[name](exact, -exact) == pytest.approx(log(3), abs=0.01), name


@EACH
def test_labels_as_values_tell_the_same(method: str) -> None:
    labels_N = torch.arange(301) % 2
    acts_ND = acts(301, 1) + 20 * labels_N[:, None]
    found = mutual_information(acts_ND, labels_N, method, k=20)
    values = mutual_information(acts_ND, labels_N.double(), method, k=20)
    assert found.y == pytest.approx(log(2), abs=0.02)
    assert values.y == pytest.approx(found.y, abs=0.02)


@PAPER
def test_bins_of_an_injective_and_a_constant_layer(evidence: Evidence) -> None:
    acts_ND = acts(256, 5)
    for_all = mutual_information(acts_ND, num_bins=256).x
    evidence("I(T; X) of an injective layer of 256 samples, ebab (bits)", measured=for_all / log(2),
             equals=8, tolerance=0.01)  # fmt: skip
    constant = mutual_information(torch.full((256, 5), 3.7)).x
    evidence("I(T; X) of a constant layer, ebab (bits)", measured=constant / log(2), equals=0,
             tolerance=1e-12)  # fmt: skip


@PAPER
@pytest.mark.parametrize("method", ["ebab", "binning"])
def test_coarser_codes_tell_less(method: str, evidence: Evidence) -> None:
    """T2 is a function of T1's codes: bins of the same partition joined two by two."""
    acts_ND = acts(256, 2)
    if method == "ebab":
        chain = [mutual_information(acts_ND, num_bins=n).x for n in (64, 32, 16, 8, 4, 2, 1)]
    else:
        widths = (0.25, 0.5, 1, 2, 4, 8, 16)
        chain = [mutual_information(acts_ND, method=method, bin_width=w).x for w in widths]
    drops = -np.diff(chain) / log(2)
    assert drops.max() > 0.5
    evidence(f"least I(T1; X) - I(T2; X) along six layers, {method} (bits)", measured=drops.min(),
             at_least=0)  # fmt: skip


@PAPER
@EACH
def test_a_unit_of_measurement_matters_to_fixed_bins_alone(method: str, evidence: Evidence) -> None:
    acts_ND = acts(1001, 2).relu() / 10
    labels_N = torch.arange(1001) % 3
    one, other = (mutual_information(s * acts_ND, labels_N, method) for s in (1, 100))
    change = max(abs(one.x - other.x), abs(one.x_lower - other.x_lower)) / log(2)
    bound = {"at_least": 1.0} if method == "binning" else {"at_most": 1e-6}
    evidence(f"change of I(T; X) by a factor of 100, {method} (bits)", measured=change, **bound)


@PAPER
def test_bounds_of_a_gaussian_channel(evidence: Evidence) -> None:
    gen = torch.Generator().manual_seed(0)
    x_N1 = 2 * torch.randn(3000, 1, generator=gen)
    found = mutual_information(x_N1, method="akde", noise=1 / float(x_N1.abs().max()))
    upper = log(1 + 4) / 2 + 4 / (2 * (4 + 1))
    lower = log(1 + 4 / 4) / 2 + 4 / (2 * (4 + 4))
    truth = log(1 + 4) / 2
    evidence("upper bound for a Gaussian channel (nats)", measured=found.x,
             equals=round(upper, 3), tolerance=0.02)  # fmt: skip
    evidence("lower bound for a Gaussian channel (nats)", measured=found.x_lower,
             equals=round(lower, 3), tolerance=0.02)  # fmt: skip
    evidence("true information above the lower bound (nats)", measured=truth - found.x_lower,
             at_least=0)  # fmt: skip
    evidence("upper bound above the true information (nats)", measured=found.x - truth,
             at_least=0)  # fmt: skip


@EACH
def test_zeros_and_constants_tell_nothing(method: str) -> None:
    for value in (0.0, -2.5):
        found = mutual_information(torch.full((300, 1), value), torch.arange(300) % 2, method)
        assert abs(found.x) < 0.1 and abs(found.y) < 0.1
    assert log(2 * pi * e) / 2 > 0.1, "the noise itself would tell more"


@EACH
def test_dtypes_and_inputs(method: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        given = acts(37, 3, dtype=dtype)
        found = mutual_information(given, LABELS_N, method)
        exact = mutual_information(given.double(), LABELS_N, method)
        assert found == exact and np.isnan(mutual_information(given, method=method).y)
        check_unchanged(partial(mutual_information, given, LABELS_N, method), given, LABELS_N)


def test_the_seed_decides_the_noise() -> None:
    check_seeded(lambda seed: mutual_information(acts(), None, "kraskov", seed=seed).x)


def test_bad_input_is_refused() -> None:
    acts_ND = acts()
    with pytest.raises(InputError, match=r"at least 2 rows .* got \(1, 5\)"):
        mutual_information(acts_ND[:1])
    broken_ND = acts_ND.clone()
    broken_ND[3, 1], broken_ND[5, 1] = torch.nan, torch.inf
    with pytest.raises(InputError, match="2 of 37 hold NaN or infinity"):
        mutual_information(broken_ND)
    with pytest.raises(InputError, match="37 rows and 36 of y"):
        mutual_information(acts_ND, LABELS_N[:36])
    with pytest.raises(InputError, match="37 rows and 36 of y"):
        ESTIMATORS["kraskov"](acts_ND, acts_ND[:36])
    with pytest.raises(InputError, match=r"shape \(N,\), got \(37, 1\)"):
        mutual_information(acts_ND, LABELS_N[:, None])
    with pytest.raises(InputError, match="one of ebab, binning, akde, kraskov, got 'knn'"):
        mutual_information(acts_ND, method="knn")
    with pytest.raises(InputError, match="more than k = 3 rows, in each class too, got 3"):
        mutual_information(acts_ND, torch.arange(37).clamp_max(34) - 31 > 2, "kraskov")
    with pytest.raises(InputError, match="must be positive"):
        mutual_information(acts_ND, noise=0)
    with pytest.raises(InputError, match="at least 1"):
        mutual_information(acts_ND, num_bins=0)
