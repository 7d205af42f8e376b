"""Every method of the chapter `similarity` of `read` keeps what its interface promises."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from actkit.catalog import Entry
from actkit.core.errors import InputError
from tests.chapters import Contract
from tests.contract import acts

ORDER = torch.randperm(37, generator=torch.Generator().manual_seed(5))


def sides(entry: Entry, **settings: Any) -> list[Tensor]:
    """Return as many sets of the same rows as a method compares, of unequal widths."""
    num = 3 if entry.name == "geometry_alignment" else 2
    mixed = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(5, 4)
    found = [acts(**settings), acts(**settings) @ mixed + acts(37, 4, seed=1), acts(37, 7, seed=2)]
    return found[:num]


def numbers(found: Any) -> list[float]:
    return [found] if isinstance(found, float) else [found.target, found.input]


class TestContract(Contract, chapter="read/similarity"):
    """What every method promises."""

    def test_it_is_a_finite_number(self, entry: Entry) -> None:
        assert all(map(math.isfinite, numbers(entry.load()(*sides(entry)))))

    def test_rows_in_another_order_on_all_sides_change_nothing(self, entry: Entry) -> None:
        here = entry.load()(*sides(entry))
        there = entry.load()(*(x[ORDER] for x in sides(entry)))
        assert numbers(there) == pytest.approx(numbers(here), rel=1e-9)

    def test_rows_in_another_order_on_one_side_change_it(self, entry: Entry) -> None:
        first, *others = sides(entry)
        here, there = entry.load()(first, *others), entry.load()(first[ORDER], *others)
        assert numbers(there) != pytest.approx(numbers(here), rel=1e-3)

    def test_a_shift_of_all_rows_changes_nothing(self, entry: Entry) -> None:
        if entry.name == "rsa":  # correlation distances between rows are not free of a shift
            pytest.skip("distances of rows by their correlation depend on where the origin is")
        first, *others = sides(entry)
        here, there = entry.load()(first, *others), entry.load()(first + 3, *others)
        assert numbers(there) == pytest.approx(numbers(here), rel=1e-6)

    def test_sides_of_unequal_rows_are_refused(self, entry: Entry) -> None:
        first, *others = sides(entry)
        with pytest.raises(InputError):
            entry.load()(first[:-1], *others)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
    def test_rows_that_are_not_finite_are_refused(self, entry: Entry, bad: float) -> None:
        first, *others = sides(entry)
        first[3, 1] = bad
        with pytest.raises(InputError):
            entry.load()(first, *others)
