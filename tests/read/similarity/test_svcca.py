import numpy as np
import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.read.similarity.svcca import svcca
from tests.contract import acts


def pair(num: int = 203) -> tuple[Tensor, Tensor]:
    x_ND = acts(num, 9)
    return x_ND, (x_ND[:, 3:7] - 2) * 2 + acts(num, 4, seed=1)


def brute(x_ND: Tensor, y_NE: Tensor, share: float) -> float:
    """Singular vectors of the rows themselves, then the angles between the two subspaces."""
    bases = []
    for rows in (x_ND.numpy(), y_NE.numpy()):
        left, values, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
        held = (values**2).cumsum() / (values**2).sum()
        bases.append(left[:, : 1 + int((held < share - 1e-12).sum())])
    return float(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean())


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 1.0])
def test_covariances_give_what_the_rows_give(share: float) -> None:
    x_ND, y_NE = pair()
    assert svcca(x_ND, y_NE, share) == pytest.approx(brute(x_ND, y_NE, share), rel=1e-9)
    streamed = svcca(torch.split(x_ND, 50), y_NE.float(), share)
    assert streamed == pytest.approx(brute(x_ND, y_NE, share), rel=1e-5)


def test_plain_cca_does_not_see_a_linear_map() -> None:
    x_ND, y_NE = pair()
    map_DD = acts(9, 9, seed=3) + 2 * torch.eye(9)
    mapped = svcca(x_ND @ map_DD + 8, y_NE, share=1)
    assert mapped == pytest.approx(svcca(x_ND, y_NE, share=1), rel=1e-7)
    assert svcca(x_ND, x_ND @ map_DD, share=1) == pytest.approx(1, abs=1e-7)


def test_directions_without_variance_are_left_out() -> None:
    x_ND, y_NE = pair()
    doubled = torch.cat([x_ND, x_ND[:, :2] * 2, torch.full((203, 1), 0.1)], 1)
    assert svcca(doubled, y_NE, share=1) == pytest.approx(svcca(x_ND, y_NE, share=1), rel=1e-6)


@pytest.mark.parametrize(
    ("num", "share", "rule"),
    [
        (13, 1.0, "more rows than the 13 directions that hold 1 of the variance, got 13"),
        (1, 0.9, "at least 2 rows, got 1"),
        (50, 0.0, r"share must be in \(0, 1\], got 0"),
        (50, float("nan"), "share must be"),
    ],
    ids=["few", "one", "none", "nan"],
)
def test_too_few_rows_and_bad_shares_are_refused(num: int, share: float, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        svcca(*pair(num), share)


def test_constant_activations_are_refused() -> None:
    with pytest.raises(InputError, match="vary"):
        svcca(torch.full((50, 3), 0.1), pair(50)[1])
