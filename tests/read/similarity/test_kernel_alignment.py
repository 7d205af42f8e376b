from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from torch import Tensor

from actkit.core.errors import InputError
from actkit.read.similarity.cka import cka
from actkit.read.similarity.kernel_alignment import kernel_alignment
from tests.contract import acts, check_unchanged


def pair(num: int) -> tuple[Tensor, Tensor]:
    x_ND = acts(num, 5)
    return x_ND, x_ND[:, 1:4].square() + acts(num, 3, seed=1)


def brute(x_ND: Tensor, y_NE: Tensor, bandwidth: float) -> float:
    centred = []
    for rows in (x_ND.numpy(), y_NE.numpy()):
        far = pdist(rows)
        scale = bandwidth * np.sort(far)[(len(far) - 1) // 2]
        kernel = np.exp(-squareform(far**2) / (2 * scale**2))
        keep = np.eye(len(rows)) - 1 / len(rows)
        centred.append(keep @ kernel @ keep)
    one, two = centred
    return float((one * two).sum() / (np.linalg.norm(one) * np.linalg.norm(two)))


@pytest.mark.parametrize("bandwidth", [0.3, 1.0])
@pytest.mark.parametrize("num", [2, 37, 900])
def test_rbf_equals_brute_force(num: int, bandwidth: float) -> None:
    x_ND, y_NE = pair(num)
    found = kernel_alignment(x_ND + 1000, y_NE, "rbf", bandwidth)
    assert found == pytest.approx(brute(x_ND, y_NE, bandwidth), rel=1e-8)


def test_the_linear_kernel_is_linear_cka_over_several_blocks(tmp_path: Path) -> None:
    x_ND, y_NE = pair(2500)
    np.save(tmp_path / "x.npy", (x_ND + 1000).numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert kernel_alignment(mapped, y_NE) == pytest.approx(cka(x_ND, y_NE), rel=1e-8)
    check_unchanged(lambda: kernel_alignment(x_ND[:50], y_NE[:50], "rbf"), x_ND, y_NE)


def test_a_wide_bandwidth_is_linear_and_a_nonlinear_relation_is_seen_by_rbf_alone() -> None:
    x_ND, y_NE = pair(200)
    wide = kernel_alignment(x_ND, y_NE, "rbf", bandwidth=300)
    assert wide == pytest.approx(cka(x_ND, y_NE), abs=1e-3)
    line_N = torch.linspace(-1, 1, 201)[:, None]
    assert kernel_alignment(line_N, line_N.square()) < 1e-9
    assert kernel_alignment(line_N, line_N.square(), "rbf", 0.5) > 0.1


def test_the_median_of_many_rows_is_taken_from_a_thousand() -> None:
    x_ND, y_NE = pair(1100)
    exact = brute(x_ND, y_NE, 1.0)
    assert kernel_alignment(x_ND, y_NE, "rbf") == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize(
    ("x", "settings", "rule"),
    [
        (acts(1, 3), {}, "at least 2 rows, got 1"),
        (acts(6, 3), {}, "rows must match, got 6 and 5"),
        (acts(5, 3), {"kernel": "sinc"}, "kernel must be one of linear, rbf"),
        (acts(5, 3), {"kernel": "rbf", "bandwidth": 0.0}, "bandwidth above 0"),
        (torch.full((5, 3), 0.1), {}, "vary"),
        (torch.full((5, 3), 0.1), {"kernel": "rbf"}, "median distance above 0"),
        (torch.full((5, 3), torch.nan), {}, "finite, 5 of 5"),
        ([acts(5, 3)], {}, "read again, .* got list"),
    ],
    ids=["one", "rows", "kernel", "bandwidth", "constant", "median", "nan", "stream"],
)
def test_what_has_no_alignment_is_refused(x: Any, settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        kernel_alignment(x, acts(min(5, len(x)) if torch.is_tensor(x) else 5, 4), **settings)
