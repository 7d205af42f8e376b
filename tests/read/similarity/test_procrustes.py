from itertools import permutations

import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from torch import Tensor

from actkit.core.errors import InputError
from actkit.read.similarity.procrustes import procrustes
from tests.contract import acts


def unit(x_ND: Tensor) -> Tensor:
    off_ND = x_ND - x_ND.mean(0)
    unit_ND: Tensor = off_ND / float(off_ND.square().sum()) ** 0.5
    return unit_ND


def test_distance_is_what_the_best_rotation_leaves() -> None:
    x_ND, y_ND = acts(83, 6), acts(83, 6, seed=1) + acts(83, 6)
    rotation, _ = orthogonal_procrustes(unit(x_ND).numpy(), unit(y_ND).numpy())
    left = (unit(x_ND) @ torch.from_numpy(rotation) - unit(y_ND)).norm()
    assert procrustes(x_ND, y_ND) == pytest.approx(float(left), rel=1e-10)
    assert procrustes(torch.split(x_ND, 20), y_ND.numpy()) == pytest.approx(float(left), rel=1e-10)


def test_the_narrower_one_is_padded() -> None:
    x_ND, y_NE = acts(40, 6), acts(40, 2, seed=1)
    padded = torch.nn.functional.pad(y_NE, (0, 4), value=3.0)
    assert procrustes(x_ND, y_NE) == pytest.approx(procrustes(x_ND, padded), rel=1e-10)


def test_a_rotated_shifted_and_scaled_copy_is_at_distance_zero() -> None:
    x_ND = acts(83, 6)
    rotation_DD = torch.linalg.qr(acts(6, 6)).Q
    assert procrustes(x_ND, -5 * x_ND @ rotation_DD + 100) < 1e-7
    assert procrustes(x_ND, x_ND * torch.arange(1, 7)) > 0.1


def test_it_is_a_metric() -> None:
    given = [acts(31, width, seed=seed) for seed, width in enumerate((3, 5, 5, 9))]
    for a, b, c in permutations(given, 3):
        assert procrustes(a, b) <= procrustes(a, c) + procrustes(c, b)
        assert procrustes(a, b) == pytest.approx(procrustes(b, a), rel=1e-10)
        assert 0 < procrustes(a, b) < 2**0.5


@pytest.mark.parametrize("num", [1, 20], ids=["one", "constant"])
def test_one_row_and_constant_rows_are_refused(num: int) -> None:
    with pytest.raises(InputError, match="vary" if num > 1 else "at least 2 rows, got 1"):
        procrustes(torch.full((num, 3), 0.1), acts(num, 4))
