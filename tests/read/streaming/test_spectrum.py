import numpy as np
import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.core.run.recording import Rows
from actkit.read.streaming.spectrum import Spectrum, SpectrumResult
from tests.contract import acts


def plain(num: int) -> Rows:
    return Rows.of(torch.ones(1, num, dtype=torch.bool)).flat()


def read(acts_ND: Tensor, parts: int = 3) -> SpectrumResult:
    reading = Spectrum()
    for part_ND in acts_ND.chunk(parts):
        reading.update(part_ND, plain(len(part_ND)))
    return reading.result()


def normal(num: int, width: int, power: float = 0.0) -> Tensor:
    raw_ND = torch.randn(num, width, generator=torch.manual_seed(0), dtype=torch.float64)
    return raw_ND * torch.arange(1, width + 1) ** (-power / 2)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("width", [5, 67])
def test_float32_equals_brute_force_in_float64(width: int, offset: float) -> None:
    acts_ND = (acts(2501, width) + offset).float()
    result, exact_ND = read(acts_ND), acts_ND.double().numpy()
    values = np.linalg.eigvalsh(np.cov(exact_ND.T, bias=True))[::-1]
    np.testing.assert_allclose(result.eigenvalues_D, values, rtol=0, atol=1e-6 * values[0])
    share = values / values.sum()
    assert result.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)
    assert result.participation_ratio == pytest.approx(1 / (share**2).sum(), rel=1e-5)
    assert result.share_first == pytest.approx(share[0], rel=1e-5)
    assert result.num_90 == (share.cumsum() < 0.9).sum() + 1
    assert result.num_99 == (share.cumsum() < 0.99).sum() + 1
    singular = np.linalg.svd(exact_ND, compute_uv=False)
    p = singular / singular.sum() + 1e-7
    assert result.rankme == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)


def test_rankme_and_effective_rank_of_a_power_law() -> None:
    result = read(normal(4000, 64, power=1.5))
    p = np.arange(1, 65) ** -0.75
    p /= p.sum()
    assert result.rankme == pytest.approx(np.exp(-(p * np.log(p)).sum()), abs=1)  # 42.9
    q = np.arange(1, 65) ** -1.5
    q /= q.sum()
    assert result.effective_rank == pytest.approx(np.exp(-(q * np.log(q)).sum()), rel=0.03)


def test_rotation_and_scale_change_no_dimension() -> None:
    acts_ND = normal(500, 12, power=1.0) + 2
    rotation_DD = torch.linalg.qr(normal(12, 12)).Q
    plain_, moved = read(acts_ND), read(37 * acts_ND @ rotation_DD)
    for name in ("effective_rank", "rankme", "participation_ratio", "share_first"):
        assert getattr(moved, name) == pytest.approx(getattr(plain_, name), rel=1e-9)


def test_isotropic_rows_use_every_dimension() -> None:
    result = read(normal(20000, 30).float())
    assert result.effective_rank == pytest.approx(30, rel=0.01)
    assert result.rankme == pytest.approx(30, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_low_rank_is_found_in_spite_of_rounding(dtype: torch.dtype) -> None:
    factor_ND = normal(3000, 4) @ normal(4, 90)
    result = read(factor_ND.to(dtype))
    assert result.effective_rank <= 4 and int((result.eigenvalues_D > 0).sum()) < 10
    line = read((normal(3000, 1) @ normal(1, 90)).to(dtype))
    assert line.effective_rank == pytest.approx(1, abs=1e-4)
    assert line.rankme == pytest.approx(1, abs=2e-2)
    assert (line.num_90, line.num_99) == (1, 1)


def test_rankme_of_fewer_rows_than_units_has_one_singular_value_for_each_row() -> None:
    acts_ND = normal(5, 200) + 1
    p = np.linalg.svd(acts_ND, compute_uv=False)
    p = p / p.sum() + 1e-7
    assert read(acts_ND).rankme == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)


def test_the_mean_counts_for_rankme_alone() -> None:
    acts_ND = normal(800, 20)
    near, far = read(acts_ND), read(acts_ND + 1e4)
    assert far.effective_rank == pytest.approx(near.effective_rank, rel=1e-6)
    assert far.rankme < 1.1 < near.rankme


def test_merging_readings_that_started_elsewhere_equals_one_pass() -> None:
    acts_ND = acts(900, 11) * 3
    acts_ND[:300] += 50
    whole, one, two = Spectrum(), Spectrum(), Spectrum()
    for reading, part_ND in ((whole, acts_ND), (one, acts_ND[:300]), (two, acts_ND[300:])):
        reading.update(part_ND, plain(len(part_ND)))
    two.merge(one)
    assert two.result().num_rows == 900 and one.result().num_rows == 300
    expected_D = whole.result().eigenvalues_D
    torch.testing.assert_close(two.result().eigenvalues_D, expected_D, rtol=1e-10, atol=1e-10)
    assert two.result().rankme == pytest.approx(whole.result().rankme, rel=1e-10)
    twice = two.merge(two).result()
    torch.testing.assert_close(twice.eigenvalues_D, expected_D, rtol=1e-10, atol=1e-10)


def test_constant_rows_use_no_dimension() -> None:
    result = read(torch.full((40, 6), 0.1))
    assert result.eigenvalues_D.tolist() == [0] * 6
    assert (result.effective_rank, result.participation_ratio) == (0, 0)
    assert (result.num_90, result.num_99) == (0, 0) and np.isnan(result.share_first)
    assert result.rankme == pytest.approx(1, abs=1e-4)


def test_no_rows_one_row_and_another_width() -> None:
    reading = Spectrum()
    assert np.isnan(reading.result().rankme) and reading.result().num_rows == 0
    reading.update(torch.empty(0, 5), plain(0))
    assert reading.result().eigenvalues_D.shape == (5,)
    reading.update(torch.full((1, 5), torch.inf), plain(1))
    reading.update(acts(1, 5), plain(1))
    assert (reading.result().num_rows, reading.result().num_nonfinite) == (1, 1)
    assert reading.result().effective_rank == 0
    with pytest.raises(InputError, match="holds 5, got 6"):
        reading.update(acts(9, 6), plain(9))
