"""How sparse are they? Told of zeros that were planted."""

import pytest
import torch
from torch import nn

import actkit as ak
from actkit.read.streaming.sparsity import Sparsity
from actkit.scanning.questions import sparsity
from tests.scanning.planted import Keep, Times, axes, chain
from tests.scanning.questions._told import page, told


def test_planted_zeros_are_counted_over_all_layers() -> None:
    blocks = (
        nn.Sequential(Times(1.0), nn.ReLU()),
        Times(0.05),
        nn.Sequential(Keep(2, 0.3), nn.ReLU()),
    )
    report = ak.scan(chain(*blocks), [axes()])
    # After the first ReLU 1 of 12 entries is 2, the rest is 0; after the second all are 0.3 or 0.4.
    assert page(report, "sparsity").findings == (
        "45.8% of activations are exactly zero, from 0% at layer 2 to 91.7% at layer 0.",
        "45.8% of activations are at most 0.1 in size, from 0% at layer 2 to 91.7% at layer 0.",
        "Every one of 12 units exceeds 0.1 in size on this data.",
    )
    (figure,) = page(report, "sparsity").figures
    assert figure.percent and figure.series["exactly zero"] == pytest.approx((11 / 12, 0.0))


def test_layers_count_by_their_number_of_entries() -> None:
    wide, narrow = torch.zeros(1, 50, 30), torch.ones(1, 50, 10)
    found = told(sparsity.tell, Sparsity, wide, narrow)
    assert (
        found[0] == "75% of activations are exactly zero, from 0% at layer L1 to 100% at layer L0."
    )


def test_zeros_that_are_seldom_or_absent() -> None:
    ones = torch.ones(1, 20_000, 2)
    assert told(sparsity.tell, Sparsity, ones)[0] == "No activation is exactly zero."
    ones[0, 7, 1] = 0
    assert (
        told(sparsity.tell, Sparsity, ones)[0]
        == "Fewer than 0.01% of activations are exactly zero."
    )
    ones[0, :100, 1] = 0
    assert told(sparsity.tell, Sparsity, ones)[0] == "0.25% of activations are exactly zero."


@pytest.mark.parametrize(
    ("dead", "sentence"),
    [
        ((0, 0, 0), "Every one of 15 units exceeds 0.1 in size on this data."),
        ((0, 1, 0), "1 of 15 units never exceeds 0.1 in size on this data, at layer L1."),
        ((0, 0, 3), "3 of 15 units never exceed 0.1 in size on this data, all at layer L2."),
        ((4, 0, 1), "5 of 15 units never exceed 0.1 in size on this data, 4 of them at layer L0."),
        ((1, 0, 1), "2 of 15 units never exceed 0.1 in size on this data, no two at one layer."),
    ],
)
def test_units_that_never_fire(dead: tuple[int, ...], sentence: str) -> None:
    layers = [torch.ones(1, 8, 5) for _ in dead]
    for layer, number in zip(layers, dead, strict=True):
        layer[..., :number] = -0.1
    assert told(sparsity.tell, Sparsity, *layers)[-1] == sentence


def test_one_layer_needs_no_name_for_its_dead_units() -> None:
    assert told(sparsity.tell, Sparsity, torch.zeros(1, 8, 5))[-1] == (
        "5 of 5 units never exceed 0.1 in size on this data."
    )
