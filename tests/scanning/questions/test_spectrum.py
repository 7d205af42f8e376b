"""How many dimensions are used? Told of ranks that were planted."""

import pytest
import torch

import actkit as ak
from actkit.read.streaming.spectrum import Spectrum
from actkit.scanning.questions import spectrum
from tests.scanning.planted import Keep, Times, axes, chain
from tests.scanning.questions._told import page, told


def test_a_planted_rank_is_found_whatever_the_offset() -> None:
    report = ak.scan(chain(Times(1.0), Keep(3, 7.0), Keep(2, -50.0)), [axes()])
    assert page(report, "spectrum").findings == (
        "The effective rank runs from 33.3% of the width at layer 2 (2 of 6 dimensions) to 100% at "
        "layer 0 (6 of 6).",
        "One direction holds up to 50% of the variance (layer 2); 90% of it takes 2 to 6 "
        "directions.",
        "In the median layer the effective rank is 50% of the width.",
    )
    (figure,) = page(report, "spectrum").figures
    assert figure.series["effective rank"] == pytest.approx((6.0, 3.0, 2.0), abs=1e-4)
    assert figure.series["directions for 90%"] == (6.0, 3.0, 2.0)


def test_ranks_of_layers_of_unequal_width_compare_by_their_share() -> None:
    wide = axes(20)
    wide[..., 8:] = 0
    assert told(spectrum.dimensions, Spectrum, axes(6), wide)[0] == (
        "The effective rank runs from 40% of the width at layer L1 (8 of 20 dimensions) to 100% at "
        "layer L0 (6 of 6)."
    )


def test_rank_where_all_layers_are_alike_or_all_rows_are() -> None:
    alike = told(spectrum.dimensions, Spectrum, axes(), axes(length=9.0))
    assert alike[0] == "The effective rank is 6 of 6 dimensions at every layer."
    assert "takes 6 directions." in alike[1]
    equal = told(spectrum.dimensions, Spectrum, torch.ones(1, 60, 6), axes())
    assert equal[0].startswith("The effective rank runs from 0% of the width at layer L0 (0 of 6")
    assert equal[2] == "At 1 layer all rows are equal."
    (alone, _) = told(spectrum.dimensions, Spectrum, torch.ones(1, 60, 6))
    assert alone == "The effective rank is 0 of 6 dimensions at layer L0."


def test_too_few_rows_for_a_rank_are_told() -> None:
    found = told(spectrum.dimensions, Spectrum, axes(samples=1), axes(samples=5))
    assert found[-1] == (
        "1 layer had fewer than 4 rows for each dimension, which makes these numbers too low there."
    )
    assert "1 direction." in told(spectrum.dimensions, Spectrum, axes(samples=1)[:, :2])[1]
