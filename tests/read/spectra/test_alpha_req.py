import numpy as np
import pytest
import torch

from actkit.core.errors import InputError
from actkit.read.spectra.alpha_req import alpha_req
from tests._evidence import Evidence
from tests.contract import acts
from tests.read.spectra.test_rankme import normal, rotation, streamed

KEY = "tracing-representation-geometry-language"


@pytest.mark.paper(KEY)
def test_exponent_of_a_planted_power_law(evidence: Evidence) -> None:
    found = alpha_req(normal(4000, 64, 1.5))
    evidence("alpha of eigenvalues i^-1.5, d = 64, N = 4000", measured=found.alpha, equals=1.5,
             tolerance=0.05)  # fmt: skip
    assert found.window == (10, 64) and found.r2 > 0.99


@pytest.mark.paper(KEY)
def test_rotation_scale_and_offset_change_nothing(evidence: Evidence) -> None:
    acts_ND = normal(900, 33, 1.0)
    moved = alpha_req(41 * acts_ND @ rotation(33) - 7).alpha
    evidence("change of alpha by rotation, scale and offset",
             measured=abs(moved - alpha_req(acts_ND).alpha), at_most=1e-5)  # fmt: skip


@pytest.mark.paper(KEY)
def test_few_rows_are_biased_high_and_say_so(evidence: Evidence) -> None:
    few, many = (alpha_req(normal(num * 64, 64, 1.0, seed=num)) for num in (2, 8))
    evidence("alpha of eigenvalues 1 / i at N = 2 d above that at N = 8 d",
             measured=few.alpha - many.alpha, at_least=0.1)  # fmt: skip
    assert (few.enough_rows, many.enough_rows) == (False, True)


def test_it_equals_a_fitted_line_and_takes_streamed_eigenvalues() -> None:
    acts_ND = acts(401, 40)
    values = np.linalg.eigvalsh(np.cov(acts_ND.numpy().T, bias=True))[::-1]
    found = alpha_req(acts_ND, window=(3, 20))
    slope = np.polyfit(np.log(np.arange(3, 21)), np.log(values[2:20]), 1)[0]
    r = np.corrcoef(np.log(np.arange(3, 21)), np.log(values[2:20]))[0, 1]
    assert found.alpha == pytest.approx(-slope) and found.r2 == pytest.approx(r**2)
    assert found.window == (3, 20)
    plain = streamed(acts_ND)
    given = alpha_req(plain.eigenvalues_D, plain.num_rows, window=(3, 20))
    assert given.alpha == pytest.approx(found.alpha)


def test_equal_eigenvalues_do_not_decay() -> None:
    found = alpha_req(torch.full((40,), 2.0), 999)
    assert found.alpha == pytest.approx(0) and np.isnan(found.r2)


@pytest.mark.parametrize(
    ("width", "window"), [(11, (10, 100)), (64, (0, 20)), (64, (20, 21)), (64, (63, 99))]
)
def test_too_few_eigenvalues_in_the_window_are_refused(width: int, window: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="at least 3 eigenvalues above 0 in the window"):
        alpha_req(torch.ones(width), 999, window=window)


def test_rows_below_the_window_are_refused() -> None:
    with pytest.raises(InputError, match="got 8 in all"):
        alpha_req(acts(9, 40))
