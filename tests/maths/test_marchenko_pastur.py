from math import sqrt

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from actkit.core.errors import InputError
from actkit.maths.marchenko_pastur import MarchenkoPastur

RATIOS = [0.01, 0.3, 1.0, 1.7, 9.0]


def exact(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def spectrum(num: int, width: int, variance: float = 1.0, seed: int = 0) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    noise_ND = sqrt(variance) * torch.randn(num, width, generator=gen, dtype=torch.float64)
    values_D: Tensor = torch.linalg.eigvalsh(noise_ND.T @ noise_ND / num).clamp_min(0)
    return values_D


@pytest.mark.parametrize("ratio", RATIOS)
def test_cdf_is_the_integral_of_the_density_and_quantile_its_inverse(ratio: float) -> None:
    law = MarchenkoPastur(ratio, 1.7)
    low, high = law.edges
    for share in (0.1, 0.45, 0.9):
        x = low + share * (high - low)
        area = quad(lambda v: float(law.density(exact(v))), low, x, limit=500)[0]
        assert float(law.cdf(exact(x))) == pytest.approx(area, abs=1e-6)
        value = law.quantile(torch.tensor(share))
        assert float(law.cdf(value)) == pytest.approx(share, abs=1e-6)
    outside = torch.tensor([low - 0.1, high + 0.1])
    assert law.cdf(outside).tolist() == pytest.approx([0, 1])
    assert law.density(outside).tolist() == [0, 0]


@pytest.mark.parametrize(("num", "width"), [(901, 301), (301, 901)])
def test_noise_follows_the_law_whichever_side_is_longer(num: int, width: int) -> None:
    values_D = spectrum(num, width, variance=2.5)
    law = MarchenkoPastur.fit(values_D, num)
    assert law.ratio == width / num
    assert law.variance == pytest.approx(2.5, rel=0.02)
    kept = values_D.sort(descending=True).values[: min(num, width)].flip(0)
    uniform = (torch.arange(len(kept)) + 0.5) / len(kept)
    assert float((law.cdf(kept) - uniform).abs().max()) < 0.01
    assert law.edges == pytest.approx((float(kept[0]), float(kept[-1])), rel=0.05)
    tripled = MarchenkoPastur.fit(3 * values_D, num)
    assert tripled.variance == pytest.approx(3 * law.variance)


def test_few_of_many_noises_exceed_the_limit() -> None:
    law = MarchenkoPastur(20 / 60)
    largest = torch.stack([spectrum(60, 20, seed=s)[-1] for s in range(400)])
    assert 0 <= float((largest > law.limit(60)).double().mean()) <= 0.03
    assert float((largest > law.edges[1]).double().mean()) > 0.05
    spread = (sqrt(60) + sqrt(20)) * (1 / sqrt(60) + 1 / sqrt(20)) ** (1 / 3) / 60
    assert law.spread(60) == pytest.approx(spread)  # Johnstone 2001, equation 1.4


@pytest.mark.parametrize("strength", [0.7, 3.0, 20.0])
def test_a_strong_spike_and_its_strength_are_inverse(strength: float) -> None:
    law = MarchenkoPastur(0.3, 2.0)
    value = law.spike(strength)
    assert value == pytest.approx(2 * (1 + strength) * (1 + 0.3 / strength))
    assert float(law.strength(torch.tensor(value))) == pytest.approx(strength)


def test_a_weak_spike_stays_at_the_edge() -> None:
    law = MarchenkoPastur(0.3, 2.0)
    assert law.spike(0.2) == law.edges[1] == pytest.approx(law.spike(sqrt(0.3) + 1e-6))
    inside = law.strength(torch.tensor([0.5, law.edges[1]]))
    np.testing.assert_allclose(inside, sqrt(0.3), rtol=1e-6)


def test_without_noise_every_eigenvalue_above_zero_is_beyond_the_limit() -> None:
    law = MarchenkoPastur.fit(torch.tensor([3.0, 1.0, 0.0, 0.0, 0.0]), 100)
    assert (law.variance, law.limit(100)) == (0, 0)
    assert float(law.quantile(torch.tensor(0.7))) == 0


@pytest.mark.parametrize(("ratio", "variance"), [(0, 1), (-1, 1), (1, -1), (torch.inf, 1)])
def test_no_law_of_such_sizes(ratio: float, variance: float) -> None:
    with pytest.raises(InputError, match="ratio must be above 0"):
        MarchenkoPastur(ratio, variance)


def test_nothing_to_fit() -> None:
    for values_D, num in ((torch.empty(0), 5), (torch.ones(3), 0)):
        with pytest.raises(InputError, match="at least 1 row"):
            MarchenkoPastur.fit(values_D, num)
