from math import log, sqrt

import numpy as np
import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.core.run.recording import Rows
from actkit.read.spectra.mp_spectrum import mp_descriptors, mp_spectrum
from actkit.read.streaming.spectrum import Spectrum
from tests._evidence import Evidence
from tests.contract import acts, check_unchanged

KEY = "structure-redundancy-large-language"
NUM, WIDTH = 4000, 400
RATIO = WIDTH / NUM


def spiked(strength: float, num_spikes: int, seed: int = 0) -> Tensor:
    """Return noise of variance 1 with directions of variance 1 + strength, rotated and offset."""
    gen = torch.Generator().manual_seed(seed)
    acts_ND = torch.randn(NUM, WIDTH, generator=gen, dtype=torch.float64)
    acts_ND[:, :num_spikes] *= sqrt(1 + strength)
    turn_DD = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=gen, dtype=torch.float64)).Q
    spiked_ND: Tensor = acts_ND @ turn_DD + torch.linspace(-3, 9, WIDTH)
    return spiked_ND


@pytest.mark.paper(KEY)
def test_noise_has_the_laws_edges_and_no_outlier(evidence: Evidence) -> None:
    for seed in range(3):
        found = mp_spectrum(spiked(0, 0, seed))
        low, high = (1 - sqrt(RATIO)) ** 2, (1 + sqrt(RATIO)) ** 2
        values_D = found.eigenvalues_D
        evidence(f"smallest eigenvalue / lower edge, seed {seed}",
                 measured=values_D[-1] / low, equals=1, tolerance=0.03)  # fmt: skip
        evidence(f"largest eigenvalue / upper edge, seed {seed}",
                 measured=values_D[0] / high, equals=1, tolerance=0.03)  # fmt: skip
        evidence(f"outliers in pure noise, seed {seed}", measured=found.num_outliers, at_most=1)
        assert found.law.edges == pytest.approx((low, high), rel=0.01)
        assert found.kl < 0.01 and found.wasserstein < 0.01


@pytest.mark.paper(KEY)
def test_spikes_are_counted_and_lie_where_theory_says(evidence: Evidence) -> None:
    expected = (1 + 3) * (1 + RATIO / 3)
    for num_spikes in range(1, 7):
        found = mp_spectrum(spiked(3, num_spikes, seed=num_spikes))
        outliers = found.eigenvalues_D[:num_spikes]
        evidence(f"outliers with {num_spikes} spikes of strength 3", measured=found.num_outliers,
                 equals=num_spikes, tolerance=0)  # fmt: skip
        evidence(f"mean outlier / (1 + l)(1 + gamma / l), {num_spikes} spikes",
                 measured=outliers.mean() / expected, equals=1, tolerance=0.05)  # fmt: skip
        assert found.strengths_K.mean() == pytest.approx(3, rel=0.06)
        weak = mp_spectrum(spiked(0.49 * sqrt(RATIO), num_spikes, seed=num_spikes))
        evidence(f"outliers with {num_spikes} spikes below sqrt(gamma) / 2",
                 measured=weak.num_outliers, equals=0, tolerance=0)  # fmt: skip


def test_descriptors_equal_brute_force() -> None:
    acts_ND = acts(301, 40)
    found = mp_spectrum(acts_ND)
    values = np.linalg.eigvalsh(np.cov(acts_ND.numpy().T, bias=True))[::-1]
    np.testing.assert_allclose(found.eigenvalues_D, values, rtol=1e-9)
    share = values / values.sum()
    assert found.entropy == pytest.approx(-(share * np.log(share)).sum())
    assert found.gap == pytest.approx((values[0] - values[1]) / values[0])
    assert found.law.ratio == 40 / 300  # a degree of freedom went into the mean
    grid = (np.arange(40) + 0.5) / 40
    expected = found.law.quantile(torch.tensor(grid)).numpy()[::-1]
    assert found.wasserstein == pytest.approx(np.abs(values - expected).mean() / values.mean())
    counts = np.histogram(found.law.cdf(found.eigenvalues_D), bins=6, range=(0, 1))[0] / 40
    kl = sum(p * log(6 * p) for p in counts if p)  # six bins, the root of 40
    assert found.kl == pytest.approx(kl)
    kept = values[values > found.limit]
    assert found.num_outliers == len(kept) > 0
    assert found.share_outliers == pytest.approx(kept.sum() / values.sum())
    assert found.summary()["num_outliers"] == len(kept)


def test_rotation_offset_and_scale_change_only_the_units() -> None:
    acts_ND = acts(203, 30)
    turn_DD = torch.linalg.qr(acts(30, 30)).Q
    one, other = mp_spectrum(acts_ND), mp_spectrum(10 * acts_ND @ turn_DD + 7)
    torch.testing.assert_close(other.eigenvalues_D, 100 * one.eigenvalues_D)
    torch.testing.assert_close(other.strengths_K, one.strengths_K)
    for name in ("entropy", "gap", "kl", "wasserstein", "share_outliers"):
        assert getattr(other, name) == pytest.approx(getattr(one, name))


def test_a_streamed_spectrum_gives_the_same() -> None:
    acts_ND = acts(301, 40)
    reading = Spectrum()
    for part_ND in torch.split(acts_ND, 77):
        rows = Rows.of(torch.ones(1, len(part_ND), dtype=torch.bool)).flat()
        reading.update(part_ND, rows)
    streamed = reading.result()
    one, other = mp_spectrum(acts_ND), mp_spectrum(streamed.eigenvalues_D, streamed.num_rows)
    assert other.summary() == pytest.approx(one.summary())


def test_fewer_rows_than_units_and_uncentred_rows() -> None:
    gen = torch.Generator().manual_seed(0)
    noise_ND = torch.randn(120, 700, generator=gen, dtype=torch.float64)
    few = mp_spectrum(noise_ND + 3)
    assert few.num_outliers == 0 and few.law.variance == pytest.approx(1, rel=0.02)
    assert int((few.eigenvalues_D > 0).sum()) == 119 and few.kl < 0.05
    mean = mp_spectrum(noise_ND + 3, centre=False)
    assert mean.num_outliers == 1 and mean.law.ratio == 700 / 120


def test_exact_low_rank_has_no_noise() -> None:
    acts_ND = acts(300, 7) @ acts(7, 50, seed=1)
    found = mp_spectrum(acts_ND.float())
    assert (found.num_outliers, found.law.variance, found.share_outliers) == (7, 0, 1)


def test_windows_are_described_one_by_one() -> None:
    acts_TD = acts(50, 9, dtype=torch.float32)
    columns = mp_descriptors(acts_TD, window=20, stride=7, leading=3)
    assert columns.shape == (5, 9) and columns.dtype == torch.float64
    third = mp_spectrum(acts_TD[14:34])
    values_D = third.eigenvalues_D
    expected = [
        *(values_D[:3] / values_D.sum()).tolist(),
        float(values_D.mean().log()),
        *(third.entropy, third.gap, third.kl, third.wasserstein, third.num_outliers),
    ]
    assert columns[2].tolist() == pytest.approx(expected)
    check_unchanged(lambda: mp_descriptors(acts_TD, 20), acts_TD)


def test_bad_input_is_refused() -> None:
    broken = acts(20, 4)
    broken[3, 1] = torch.nan
    broken[4, 2] = torch.inf
    for given, num, message in (
        (broken, None, "got 2 that are not of 80"),
        (torch.ones(20, 4), None, "one above"),
        (torch.zeros(4), 9, "one above"),
        (torch.tensor([1.0, -0.5]), 9, "at least 0"),
        (acts(1, 4), None, "one above"),
        (torch.ones(4), 1, "at least 2 rows"),
        (torch.ones(4), None, "num_rows"),
        (torch.ones(4), 0, "num_rows"),
        (acts(20, 4), 20, "num_rows"),
        (torch.ones(2, 3, 4), None, "need .N, D."),
        (torch.ones(4, dtype=torch.long), 9, "floating point"),
        (torch.empty(0, 4), None, r"shape \(0, 4\)"),
    ):
        with pytest.raises(InputError, match=message):
            mp_spectrum(given, num)
    for window, stride, leading in ((1, 1, 1), (21, 1, 1), (5, 0, 1), (5, 1, 5), (5, 1, 0)):
        with pytest.raises(InputError):
            mp_descriptors(acts(20, 4), window, stride, leading)
