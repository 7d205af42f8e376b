from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.read.similarity.cka import cka
from actkit.store import Store
from tests.contract import acts, check_unchanged
from tests.core import tiny


def pair(num: int = 101) -> tuple[Tensor, Tensor]:
    """Two representations with something in common, off the origin."""
    x_ND = acts(num, 7)
    return x_ND, (x_ND[:, 2:5] - 4) * 3 + acts(num, 3, seed=1)


def centred(x_ND: Tensor) -> Tensor:
    gram_NN = x_ND @ x_ND.T
    keep_NN = torch.eye(len(x_ND), dtype=torch.float64) - 1 / len(x_ND)
    return keep_NN @ gram_NN @ keep_NN


def hsic_1(x_ND: Tensor, y_NE: Tensor) -> float:
    """The U-statistic of Song et al. 2012, from both Gram matrices."""
    n = len(x_ND)
    k_NN, l_NN = ((a @ a.T).fill_diagonal_(0) for a in (x_ND, y_NE))
    one_N = torch.ones(n, dtype=torch.float64)
    value = (k_NN @ l_NN).trace()
    value += (one_N @ k_NN @ one_N) * (one_N @ l_NN @ one_N) / ((n - 1) * (n - 2))
    value -= 2 / (n - 2) * (one_N @ k_NN @ l_NN @ one_N)
    return float(value / (n * (n - 3)))


@pytest.mark.parametrize("num", [4, 5, 101])
def test_both_estimators_equal_their_gram_matrices(num: int) -> None:
    x_ND, y_NE = pair(num)
    k_NN, l_NN = centred(x_ND), centred(y_NE)
    expected = float((k_NN * l_NN).sum() / (k_NN.norm() * l_NN.norm()))
    assert cka(x_ND, y_NE) == pytest.approx(expected, rel=1e-12)
    expected = hsic_1(x_ND, y_NE) / (hsic_1(x_ND, x_ND) * hsic_1(y_NE, y_NE)) ** 0.5
    assert cka(x_ND, y_NE, unbiased=True) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("unbiased", [False, True])
def test_rotation_scale_and_shift_change_nothing_but_a_linear_map_does(unbiased: bool) -> None:
    x_ND, y_NE = pair()
    rotation_DD = torch.linalg.qr(acts(7, 7)).Q
    moved_ND = 37 * x_ND @ rotation_DD - 500
    assert cka(moved_ND, y_NE, unbiased) == pytest.approx(cka(x_ND, y_NE, unbiased), rel=1e-9)
    assert cka(x_ND, moved_ND, unbiased) == pytest.approx(1, abs=1e-12)
    assert cka(y_NE, x_ND, unbiased) == pytest.approx(cka(x_ND, y_NE, unbiased), rel=1e-12)
    assert cka(x_ND, x_ND * torch.arange(1, 8), unbiased) < 0.99


def test_many_units_and_few_rows_bias_one_estimator_alone() -> None:
    gen = torch.Generator().manual_seed(0)
    x_ND, y_NE = (torch.randn(40, 400, generator=gen) + 5 for _ in range(2))
    # Independent rows: E HSIC = (N - 1) D E against E HSIC(x, x) = (N - 1) D (D + N).
    assert cka(x_ND, y_NE) == pytest.approx(400 / 440, abs=0.02)
    assert abs(cka(x_ND, y_NE, unbiased=True)) < 0.05


def test_arrays_blocks_memory_maps_and_columns_of_a_store_say_the_same(tmp_path: Path) -> None:
    model = tiny.model()
    model.harvest(tiny.PROMPTS, ["resid_post.1", "z.0"], tmp_path / "s", dtype="float32")
    store = Store(tmp_path / "s")
    x_ND, y_NHK = store["resid_post.1"][:], store["z.0"][:]
    expected = cka(x_ND, y_NHK.flatten(1))
    np.save(tmp_path / "x.npy", x_ND.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    ways: list[tuple[Any, Any]] = [
        (store["resid_post.1"], store["z.0"]),
        (mapped, torch.split(y_NHK, [4, 1, 10])),
        ((b for b in torch.split(x_ND, 6)), y_NHK.numpy()),
    ]
    for x, y in ways:
        assert cka(x, y) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_any_precision_is_summed_in_float64(dtype: torch.dtype) -> None:
    x_ND, y_NE = (a.to(dtype) for a in pair())
    assert cka(x_ND, y_NE) == cka(x_ND.double(), y_NE.double())
    check_unchanged(lambda: cka(x_ND, y_NE), x_ND, y_NE)


def test_one_unit_may_be_a_vector_and_labels_may_be_integers() -> None:
    x_N, label_N = acts(30, 1)[:, 0], torch.arange(30) % 3
    correlation = np.corrcoef(x_N.numpy(), label_N.numpy())[0, 1]
    assert cka(x_N, label_N) == pytest.approx(correlation**2, rel=1e-10)


@pytest.mark.parametrize(
    ("x", "unbiased", "rule"),
    [
        (torch.ones(1, 3), False, "at least 2 rows, got 1"),
        (torch.randn(3, 2), True, "at least 4 rows, got 3"),
        (torch.full((50, 3), 0.1), False, "vary"),
        (torch.full((50, 3), 0.1), True, "vary"),
        (torch.eye(9), True, "vary"),
        (torch.full((6, 2), torch.nan), False, "finite, 6 of 6"),
    ],
    ids=["one", "three", "constant", "constant unbiased", "equidistant", "nan"],
)
def test_what_has_no_alignment_is_refused(x: Tensor, unbiased: bool, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        cka(x, acts(len(x), 4), unbiased)
