import pytest
import torch

from actkit.core.errors import InputError
from actkit.core.run.recording import Rows
from actkit.read._sums import Spread, exp_entropy, mergeable, usable
from actkit.read.streaming.moments import Moments
from actkit.read.streaming.sparsity import Sparsity
from tests.contract import acts, rows


def test_padding_first_tokens_and_nonfinite_rows_are_left_out() -> None:
    acts_ND, of = acts(31, dtype=torch.float32), rows(31)
    of = Rows(torch.arange(31) != 4, of.sample, of.position, of.token)
    acts_ND[7, 2], acts_ND[9, 0], acts_ND[18, 1] = torch.nan, torch.inf, -torch.inf
    used_ND, kept, num_nonfinite = usable(acts_ND, of, skip_first=True)
    left = [i for i in range(31) if i != 4 and of.position[i] and i not in (7, 9)]
    assert int(of.position[18]) == 0  # left out as a first token, so it is not counted again
    assert num_nonfinite == 2
    assert torch.equal(used_ND, acts_ND[left]) and torch.equal(kept.position, of.position[left])


def test_first_rows_without_a_token_stay() -> None:
    image = Rows.image(2, 3, 1).flat()
    assert len(usable(acts(6), image, skip_first=True)[0]) == 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_low_precision_becomes_float32(dtype: torch.dtype) -> None:
    acts_ND = acts(5).to(dtype)
    used_ND, _, _ = usable(acts_ND, rows(5))
    assert used_ND.dtype == torch.float32 and torch.equal(used_ND, acts_ND.float())


@pytest.mark.parametrize("scale", [1e-25, 1e30])
def test_float32_whose_squares_leave_its_range_becomes_float64(scale: float) -> None:
    acts_ND = (acts(5) * scale).float()
    assert usable(acts_ND, rows(5))[0].dtype == torch.float64
    acts_ND[0, 0] = torch.nan
    assert usable(acts_ND, rows(5))[0].dtype == torch.float64


@pytest.mark.parametrize(
    "given",
    [torch.zeros(5), torch.zeros(2, 3, 4), torch.zeros(4, 3), torch.zeros(5, 3, dtype=torch.long)],
    ids=["one axis", "three axes", "rows", "integers"],
)
def test_activations_that_do_not_fit_are_refused(given: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"got (shape|torch\.int64)"):
        usable(given, rows(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spread_of_parts_is_the_spread_of_the_whole(dtype: torch.dtype) -> None:
    acts_ND = (acts(301) + 1e5).to(dtype)
    parts = [Spread.of(part_ND) for part_ND in torch.split(acts_ND, [1, 0, 100, 200])]
    total = (parts[0] + parts[1]) + (parts[3] + parts[2])
    exact_ND = acts_ND.double()
    assert total.num_rows == 301
    torch.testing.assert_close(total.mean_D, exact_ND.mean(0), rtol=1e-13, atol=0)
    expected_D = exact_ND.var(0, correction=0)
    torch.testing.assert_close(total.variance(), expected_D, rtol=1e-6, atol=0)


def test_spread_of_a_constant_is_exactly_zero() -> None:
    total = Spread.of(torch.full((77, 3), 0.1)) + Spread.of(torch.full((5, 3), 0.1))
    assert total.variance().tolist() == [0, 0, 0]


def test_exp_entropy_of_a_geometric_series() -> None:
    weights = torch.tensor([4.0, 2.0, 1.0, 1.0])  # entropy 1.75 bits
    assert exp_entropy(weights) == pytest.approx(2**1.75)
    assert exp_entropy(weights * 1e-9) == pytest.approx(2**1.75)


def test_readings_of_another_kind_or_setting_do_not_merge() -> None:
    with pytest.raises(InputError, match=r"of one kind to merge, got Moments and Sparsity"):
        mergeable(Moments(), Sparsity())
    with pytest.raises(InputError, match="same settings"):
        Moments().merge(Moments(skip_first=False))
