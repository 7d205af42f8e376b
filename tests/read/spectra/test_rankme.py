import numpy as np
import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.core.run.recording import Rows
from actkit.read.spectra.rankme import rankme
from actkit.read.streaming.spectrum import Spectrum, SpectrumResult
from tests._evidence import Evidence
from tests.contract import acts, check_unchanged

KEY = "tracing-representation-geometry-language"


def normal(num: int, width: int, power: float = 0.0, seed: int = 0) -> Tensor:
    """Return offset rows whose covariance is diagonal with i^-power."""
    gen = torch.Generator().manual_seed(seed)
    raw_ND = torch.randn(num, width, generator=gen, dtype=torch.float64)
    return raw_ND * torch.arange(1, width + 1) ** (-power / 2) + torch.linspace(-3, 5, width)


def rotation(width: int) -> Tensor:
    q_DD: Tensor = torch.linalg.qr(normal(width, width, seed=9)).Q
    return q_DD


def streamed(acts_ND: Tensor) -> SpectrumResult:
    reading = Spectrum()
    rows = Rows.of(torch.ones(1, len(acts_ND), dtype=torch.bool)).flat()
    reading.update(acts_ND, rows)
    return reading.result()


@pytest.mark.paper(KEY)
def test_power_law_isotropic_and_single_direction(evidence: Evidence) -> None:
    p = np.arange(1, 65) ** -0.75
    p /= p.sum()
    expected = float(np.exp(-(p * np.log(p)).sum()))
    assert expected == pytest.approx(42.89, abs=0.01)
    found = rankme(normal(4000, 64, 1.5)).value
    evidence("RankMe of eigenvalues i^-1.5, d = 64, N = 4000", measured=found, equals=expected,
             tolerance=1)  # fmt: skip
    evidence("RankMe of isotropic rows / d", measured=rankme(normal(4000, 64)).value / 64,
             equals=1, tolerance=0.02)  # fmt: skip
    line_ND = normal(400, 1) @ normal(1, 64)
    evidence("RankMe of one direction", measured=rankme(line_ND).value, equals=1,
             tolerance=1e-3)  # fmt: skip


@pytest.mark.paper(KEY)
def test_rotation_scale_and_offset_change_nothing(evidence: Evidence) -> None:
    acts_ND = normal(900, 33, 1.0)
    moved = rankme(41 * acts_ND @ rotation(33) - 7).value
    evidence("change of RankMe by rotation, scale and offset",
             measured=abs(moved - rankme(acts_ND).value), at_most=1e-5)  # fmt: skip


@pytest.mark.paper(KEY)
def test_few_rows_are_biased_low_and_say_so(evidence: Evidence) -> None:
    few, many = (rankme(normal(num * 64, 64, seed=num)) for num in (2, 8))
    evidence("RankMe / d of isotropic rows at N = 2 d", measured=few.value / 64, at_most=0.95)
    evidence("the same at N = 8 d above it", measured=(many.value - few.value) / 64,
             at_least=0.03)  # fmt: skip
    assert (few.enough_rows, many.enough_rows) == (False, True)
    assert few.min_rows == 256 and few.num_rows == 128
    assert rankme(normal(256, 64)).enough_rows and not rankme(normal(255, 64)).enough_rows


@pytest.mark.parametrize("num", [301, 20], ids=["tall", "wide"])
def test_it_equals_brute_force_and_what_spectrum_streams(num: int) -> None:
    acts_ND = acts(num, 27)
    centred = np.linalg.svd(acts_ND - acts_ND.mean(0), compute_uv=False)
    p = centred / centred.sum() + 1e-7
    assert rankme(acts_ND).value == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    plain = streamed(acts_ND)
    assert rankme(acts_ND, centre=False).value == pytest.approx(plain.rankme, rel=1e-6)
    assert rankme(acts_ND, squared=True).value == pytest.approx(plain.effective_rank)
    given = rankme(plain.eigenvalues_D, plain.num_rows)
    assert given.value == pytest.approx(rankme(acts_ND).value, rel=1e-6)
    assert given.num_rows == num


def test_a_large_mean_counts_without_centring_alone() -> None:
    far_ND = normal(500, 20) + 1e4
    assert rankme(far_ND, centre=False).value < 1.2 and rankme(far_ND).value > 19


def test_low_precision_and_input() -> None:
    acts_ND = normal(500, 20, 0.5)
    for dtype, rel in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        assert rankme(acts_ND.to(dtype)).value == pytest.approx(rankme(acts_ND).value, rel=rel)
    check_unchanged(lambda: rankme(acts_ND), acts_ND)
    with pytest.raises(InputError, match="one above"):
        rankme(torch.full((30, 5), 0.1))
    with pytest.raises(InputError, match="one above"):
        rankme(acts_ND[:1])
    with pytest.raises(InputError, match="got 1 that are not of 4"):
        rankme(torch.tensor([[1.0, 2.0], [torch.nan, 3.0]]))
