import itertools

import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.core.run.recording import Rows
from actkit.read.streaming.massive import Massive, MassiveResult
from tests.contract import acts, rows


def read(acts_ND: Tensor, of: Rows, k: int = 3, parts: int = 1) -> MassiveResult:
    reading = Massive(k=k)
    for index_N in torch.arange(len(acts_ND)).chunk(parts):
        reading.update(acts_ND[index_N], of[index_N])
    return reading.result()


def test_planted_activations_are_found_where_they_are() -> None:
    acts_ND, of = acts(1001, 33, dtype=torch.float32), rows(1001)
    places = {(13, 7): -9000.0, (400, 20): 7000.0, (18, 7): 4001.0}  # rows 13 and 18: new texts
    for (row, unit), value in places.items():
        acts_ND[row, unit] = value
    result = read(acts_ND, of, parts=7)
    expected = [
        (v, u, int(of.sample[r]), int(of.position[r]), int(of.token[r]))
        for (r, u), v in places.items()
    ]
    assert [tuple(p) for p in result.top] == expected
    assert result.num_massive == 3 and result.massive_units == (7, 20)
    torch.testing.assert_close(result.peak_D, acts_ND.abs().amax(0).double(), rtol=0, atol=0)
    assert result.ratios == tuple(abs(p.value) / result.median for p in result.top)


@pytest.mark.parametrize("num", [1, 2, 37, 500])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0])
def test_median_is_right_to_a_part_in_256(num: int, scale: float) -> None:
    acts_ND = acts(num, 7, dtype=torch.float32) * scale
    exact = float(acts_ND.double().abs().flatten().quantile(0.5))
    assert read(acts_ND, rows(num), parts=3).median == pytest.approx(exact, rel=2**-8)


def test_median_of_bfloat16_is_exact() -> None:
    acts_ND = acts(91, 7, dtype=torch.bfloat16)
    assert read(acts_ND, rows(91)).median == float(acts_ND.abs().float().median())


def test_largest_entries_equal_a_sort_of_all_of_them() -> None:
    acts_ND, of = acts(200, 9, dtype=torch.float32), rows(200)
    acts_ND[17] = torch.linspace(40, 48, 9)  # many of the largest in one row
    order = acts_ND.abs().flatten().argsort(descending=True)[:5].tolist()
    top = read(acts_ND, of, k=5, parts=4).top
    assert [(p.value, p.unit) for p in top] == [
        (float(acts_ND.flatten()[i]), i % acts_ND.shape[1]) for i in order
    ]


def test_ties_go_to_the_first_sample_position_and_unit_whatever_the_order() -> None:
    acts_ND = torch.ones(12, 3)
    acts_ND[2, 1], acts_ND[9, 2], acts_ND[9, 0] = -5.0, 5.0, 6.0
    of = Rows(
        torch.ones(12, dtype=torch.bool),
        torch.arange(12) // 4,
        torch.arange(12) % 4,
        torch.arange(12),
    )
    expected = [(6, 2, 1, 0), (-5, 0, 2, 1), (5, 2, 1, 2), (1, 0, 0, 0), (1, 0, 0, 1)]
    for seed, parts in itertools.product(range(5), (1, 3, 12)):
        order_N = torch.randperm(12, generator=torch.manual_seed(seed))
        top = read(acts_ND[order_N], of[order_N], k=5, parts=parts).top
        assert [(p.value, p.sample, p.position, p.unit) for p in top] == expected


def test_massive_needs_both_the_floor_and_the_ratio() -> None:
    acts_ND, of = torch.full((101, 3), 0.01), rows(101)
    acts_ND[0, 0] = 99.0  # 9,900 times the median
    assert read(acts_ND, of).num_massive == 0
    acts_ND[0, 0] = 100.0  # it must be above
    assert (read(acts_ND, of).num_massive, read(acts_ND, of).massive_units) == (0, ())
    acts_ND[0, 0] = 101.0
    assert read(acts_ND, of).num_massive == 1
    acts_ND = acts_ND * 50  # median 0.5, so 5,050 is massive and 450 is not
    acts_ND[1, 1] = 450.0
    assert (read(acts_ND, of).num_massive, read(acts_ND, of).massive_units) == (1, (0,))


def test_a_median_of_zero_makes_ratios_infinite() -> None:
    result = read(torch.tensor([[0.0, 0.0, 3.0]]), rows(1), k=1)
    assert result.median == 0 and result.ratios == (float("inf"),) and result.num_massive == 0


def test_no_rows_k_and_widths() -> None:
    assert Massive().result().top == () and Massive().result().num_rows == 0
    with pytest.raises(InputError, match="at least 1, got 0"):
        Massive(k=0)
    reading = Massive()
    reading.update(acts(9, 5), rows(9))
    with pytest.raises(InputError, match="holds 5, got 6"):
        reading.update(acts(9, 6), rows(9))
