import numpy as np
import pytest
import torch

from actkit.core.errors import InputError
from actkit.core.run.recording import Rows
from actkit.read.streaming.sparsity import Sparsity
from tests.contract import acts


def plain(num: int) -> Rows:
    return Rows.of(torch.ones(1, num, dtype=torch.bool)).flat()


def test_shares_equal_a_count_in_numpy() -> None:
    acts_ND = acts(401, 7, dtype=torch.float32).relu()
    acts_ND[:, 2] = 0
    acts_ND[:, 3] = -0.05
    acts_ND[::3, 3] = -0.0
    reading = Sparsity(thresholds=(0.1, 2.0))
    for part_ND in torch.split(acts_ND, [1, 150, 250]):
        reading.update(part_ND, plain(len(part_ND)))
    result, size_ND = reading.result(), np.abs(acts_ND.numpy())
    assert result.levels == (0.0, 0.1, 2.0)
    for k, level in enumerate(result.levels):
        above_ND = size_ND > np.float32(level)
        assert result.below[k] == pytest.approx(1 - above_ND.mean(), abs=1e-15)
        np.testing.assert_allclose(result.active_KD[k], above_ND.mean(0), atol=1e-15)
        assert result.num_dead[k] == (~above_ND.any(0)).sum()
    assert result.num_dead[:2] == (2, 3) and result.zeros == result.below[0]


def test_hoyer_of_one_hot_flat_and_zero_rows() -> None:
    one_hot, flat, zero = torch.eye(9)[4] * -3, torch.full((9,), 0.7), torch.zeros(9)
    for given, expected in (([one_hot], 1), ([flat], 0), ([one_hot, flat, zero], 0.5)):
        reading = Sparsity()
        reading.update(torch.stack(given), plain(len(given)))
        assert reading.result().hoyer == pytest.approx(expected, abs=1e-6)
    reading = Sparsity()
    reading.update(zero[None], plain(1))
    assert np.isnan(reading.result().hoyer) and reading.result().zeros == 1


def test_hoyer_does_not_depend_on_the_scale() -> None:
    small, large = Sparsity(), Sparsity()
    small.update(acts(50) * 1e-30, plain(50))
    large.update(acts(50) * 1e30, plain(50))
    assert small.result().hoyer == pytest.approx(large.result().hoyer, rel=1e-9)


def test_a_relu_network_at_its_start_is_half_active() -> None:
    gen = torch.manual_seed(0)
    input_ND = torch.randn(500, 64, generator=gen)
    weight_DD = torch.randn(256, 64, generator=gen) / 8
    reading = Sparsity()
    reading.update((input_ND @ weight_DD.T).relu(), plain(500))
    assert 1 - reading.result().zeros == pytest.approx(0.5, abs=0.02)


def test_no_rows_and_width_one() -> None:
    assert np.isnan(Sparsity().result().below).all()
    reading = Sparsity()
    reading.update(torch.tensor([[0.0], [1.0]]), plain(2))
    assert reading.result().zeros == 0.5 and np.isnan(reading.result().hoyer)


@pytest.mark.parametrize("thresholds", [(0.0,), (-1.0,), (0.2, 0.1), (float("nan"),)])
def test_thresholds_must_be_positive_and_rising(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="positive and rising"):
        Sparsity(thresholds=thresholds)


def test_another_width_is_refused_with_both_widths() -> None:
    reading = Sparsity()
    reading.update(acts(9, 5), plain(9))
    with pytest.raises(InputError, match="holds 5, got 6"):
        reading.update(acts(9, 6), plain(9))
