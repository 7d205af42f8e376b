"""Sums over several sets of activations: merged, moved, read in blocks."""

import weakref
from collections.abc import Iterator
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.read._paired_sums import BLOCK, Sums, in_step, joint_sums
from tests.contract import acts

WIDTHS = (3, 1, 5)


def brute(acts_NW: Tensor, center_W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    z_NW = acts_NW - center_W
    q_NL = torch.stack([p.square().sum(1) for p in torch.split(z_NW, list(WIDTHS), 1)], 1)
    return z_NW.T @ z_NW, z_NW.T @ q_NL, q_NL.T @ q_NL


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_sums_of_parts_equal_brute_force_about_any_point(offset: float) -> None:
    acts_NW = acts(101, 9) + offset
    acts_NW[:40] += 7
    parts = [Sums.of(p, WIDTHS) for p in torch.split(acts_NW, [1, 39, 0, 60, 1])]
    for total in (reduce(add, parts), reduce(add, parts[::-1])):
        assert total.num_rows == 101
        torch.testing.assert_close(total.mean_W, acts_NW.mean(0), rtol=1e-13, atol=0)
        for center_W in (acts_NW.mean(0), acts_NW[3]):
            for got, exact in zip(total.about(center_W), brute(acts_NW, center_W), strict=True):
                atol = 1e-11 * float(exact.abs().max())
                torch.testing.assert_close(got, exact, rtol=0, atol=atol)
    torch.testing.assert_close(total.between(0, 2), total.cross_WW[:3, 4:])


def test_equal_rows_have_no_variance_at_all() -> None:
    rows = torch.full((5, 3), 0.9590000000000001, dtype=torch.float64)
    assert (rows.sum(0) / 5 != rows[0]).all()  # their mean is rounded
    assert (Sums.of(rows, (3,)) + Sums.of(rows[:4], (3,))).squares().tolist() == [0]


def test_blocks_of_any_size_are_brought_in_step() -> None:
    x_ND, y_NE = acts(50, 3), acts(50, 2, seed=1)
    given = [torch.split(x_ND, [7, 20, 23]), torch.split(y_NE, [1, 0, 30, 19])]
    parts = list(in_step(*given))
    assert torch.equal(torch.cat([p[0] for p in parts]), x_ND)
    assert torch.equal(torch.cat([p[1] for p in parts]), y_NE)


@pytest.mark.parametrize(
    ("x", "y", "rule"),
    [
        (torch.zeros(5, 2), torch.zeros(4, 2), r"same rows, got shapes \[\(5, 2\), \(4, 2\)\]"),
        ([torch.zeros(5, 2)], [torch.zeros(3, 2)], "number 1 has 3 and others have more"),
        ([torch.zeros(5)], [torch.zeros(5, 2)], r"\(rows, width\), got shape \(5,\)"),
        (torch.tensor(1.0), torch.zeros(5, 2), r"same rows, got shapes \[\(\), \(5, 2\)\]"),
        ([torch.zeros(5, 2), torch.zeros(5, 3)], torch.zeros(10, 2), "keep their widths"),
        (torch.zeros(0, 2), torch.zeros(0, 2), "at least 2 rows, got 0"),
    ],
    ids=["rows", "stream", "vector", "scalar", "width", "empty"],
)
def test_rows_that_do_not_fit_are_refused(x: Any, y: Any, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        joint_sums(x, y)


def test_rows_that_are_not_finite_are_counted_over_all_blocks() -> None:
    x_ND, y_NE = acts(9001, 2), acts(9001, 3)
    x_ND[5, 1], y_NE[5, 0], y_NE[9000, 2] = torch.nan, torch.inf, -torch.inf
    with pytest.raises(InputError, match="finite, 2 of 9001 rows"):
        joint_sums(x_ND, y_NE)


class Made:
    """A million rows that exist only while they are read; counts the most at once."""

    shape, most = (1_000_000, 8), 0

    def __getitem__(self, index: slice) -> Tensor:
        rows = torch.arange(*index.indices(self.shape[0]), dtype=torch.float32)
        self.most = max(self.most, len(rows))
        return (rows[:, None] * torch.arange(1, 9) * 0.37).sin() + 3


def test_a_million_rows_are_read_in_blocks_that_are_let_go(tmp_path: Path) -> None:
    made, most = Made(), 0
    past: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[Tensor]:
        nonlocal most
        for start in range(0, made.shape[0], 50_000):
            most = max(most, sum(ref() is not None for ref in past))
            block = made[start : start + 50_000]
            past.append(weakref.ref(block))
            yield block

    file = np.memmap(tmp_path / "x", np.float32, "w+", shape=made.shape)
    for start in range(0, made.shape[0], 50_000):
        file[start : start + 50_000] = made[start : start + 50_000].numpy()
    file.flush()
    whole, made.most = Sums.of(made[:1_000_000].double(), (8,)), 0
    sums = joint_sums(made, stream(), np.memmap(tmp_path / "x", np.float32, "r", shape=made.shape))
    assert sums.num_rows == 1_000_000 and most <= 2 and len(past) == 20
    assert made.most == 50_000  # the stream's own blocks are larger than those that are chosen
    for i in range(3):
        torch.testing.assert_close(sums.between(i, 2), whole.cross_WW, rtol=1e-9, atol=1e-4)


def test_a_number_has_no_rows() -> None:
    with pytest.raises(InputError, match="axis of rows, got shape"):
        joint_sums(torch.tensor(1.0))


def test_what_can_be_chosen_is_read_in_small_blocks() -> None:
    made = Made()
    next(in_step(made))
    assert made.most == BLOCK
