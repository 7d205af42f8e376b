import numpy as np
import pytest
import torch

from actkit.core.errors import InputError
from actkit.core.run.recording import Rows
from actkit.read.streaming.moments import Moments
from tests.contract import acts, rows


def plain(num: int) -> Rows:
    return Rows.of(torch.ones(1, num, dtype=torch.bool)).flat()


@pytest.mark.parametrize("offset", [0.0, 3e4])
def test_statistics_equal_numpy_in_float64(offset: float) -> None:
    acts_ND = (acts(523, 7) + offset).float()
    reading = Moments()
    for part_ND in torch.split(acts_ND, [1, 200, 322]):
        reading.update(part_ND, plain(len(part_ND)))
    result, exact_ND = reading.result(), acts_ND.double().numpy()
    norm_N = np.linalg.norm(exact_ND, axis=1)
    np.testing.assert_allclose(result.mean_D, exact_ND.mean(0), rtol=1e-12)
    np.testing.assert_allclose(result.variance_D, exact_ND.var(0), rtol=1e-6)
    found = [result.rms, result.norm_mean, result.norm_std, result.norm_min, result.norm_max]
    root = np.sqrt((exact_ND**2).mean())
    expected = [root, norm_N.mean(), norm_N.std(), norm_N.min(), norm_N.max()]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert result.num_rows == 523


def test_first_tokens_count_only_on_request() -> None:
    acts_ND, of = acts(31), rows(31)
    acts_ND[of.position == 0] += 1e4
    results = {}
    for skip_first in (True, False):
        reading = Moments(skip_first=skip_first)
        reading.update(acts_ND, of)
        results[skip_first] = reading.result()
    later_ND = acts_ND[of.position > 0]
    torch.testing.assert_close(results[True].mean_D, later_ND.mean(0))
    torch.testing.assert_close(results[False].mean_D, acts_ND.mean(0))


def test_a_site_without_a_usable_row_gives_nan_and_counts() -> None:
    reading = Moments()
    reading.update(torch.full((4, 3), torch.nan), plain(4))
    result = reading.result()
    assert (result.num_rows, result.num_nonfinite) == (0, 4)
    assert result.mean_D.isnan().all() and result.variance_D.isnan().all()
    assert np.isnan([result.rms, result.norm_mean, result.norm_std, result.norm_min]).all()
    assert Moments().result().num_rows == 0


def test_another_width_is_refused_with_both_widths() -> None:
    reading = Moments()
    reading.update(acts(9, 5), rows(9))
    with pytest.raises(InputError, match="holds 5, got 6"):
        reading.update(acts(9, 6), rows(9))
    other = Moments()
    other.update(acts(9, 4), rows(9))
    with pytest.raises(InputError, match="holds 5, got 4"):
        reading.merge(other)
    assert reading.result().num_rows == 8  # what failed left nothing behind
