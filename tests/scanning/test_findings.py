"""Findings against answers that were planted."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import actkit as ak
from actkit.core.run.recording import Rows
from actkit.read.streaming.massive import Massive
from actkit.read.streaming.moments import Moments
from actkit.read.streaming.sinks import Sinks
from actkit.read.streaming.sparsity import Sparsity
from actkit.read.streaming.spectrum import Spectrum
from actkit.scanning.answer import Page
from actkit.scanning.questions import massive, sinks, size, sparsity, spectrum
from actkit.scanning.report import Report
from tests.scanning.planted import Keep, Plant, Times, axes, chain


def page(report: Report, key: str) -> Page:
    """Return one page."""
    return next(p for p in report.pages if p.key == key)


def told(tell: Any, reading: Any, *layers: Tensor) -> list[str]:
    """Return the findings on layers whose (samples, positions, ...) activations are given."""
    results = []
    for acts in layers:
        own, rows = reading(), Rows.of(torch.ones(acts.shape[:2], dtype=torch.bool)).flat()
        own.update(acts.flatten(0, 1), rows)
        results.append(own.result())
    sentences: list[str] = tell([f"L{i}" for i in range(len(layers))], results, None)[0]
    return sentences


# -- How big? ------------------------------------------------------------------------------------


def test_growth_is_told_with_its_factor_and_its_largest_step() -> None:
    report = ak.scan(chain(Times(1.5), Times(0.5), Times(-16.0), Times(1.0)), [axes()])
    assert page(report, "size").findings == (
        "The mean length of a vector grows from 3 at layer 0 to 24 at layer 3, a factor of 8.",
        "The largest change from one layer to the next is by a factor of 16, from layer 1 to 2.",
        "Lengths vary most at layer 0: their standard deviation is 0% of their mean; in the median "
        "layer it is 0%.",
    )
    (figure,) = page(report, "size").figures
    assert figure.series == dict.fromkeys(("longest", "mean", "shortest"), (3.0, 1.5, 24.0, 24.0))
    assert figure.log is False


def test_a_shrinking_step_counts_as_a_change_too() -> None:
    found = told(size.tell, Moments, axes(), axes(length=5.0), axes(length=0.1))
    assert found[0].startswith("The mean length of a vector shrinks from 2 at layer L0 to 0.1 at")
    assert found[1].endswith("by a factor of 0.02, from layer L1 to L2.")


def test_size_where_nothing_changes_or_all_is_zero() -> None:
    same = told(size.tell, Moments, axes(), axes(), axes())
    assert same[0] == "The mean length of a vector is 2 at layer L0 and L2 alike."
    assert not any("largest change" in s for s in same)
    zero = told(size.tell, Moments, 0 * axes(), axes(), axes(length=3.0))
    assert zero[0] == "The mean length of a vector grows from 0 at layer L0 to 3 at layer L2."
    assert not any("largest change" in s for s in zero), "one step only has a factor"
    (alone,) = told(size.tell, Moments, 0 * axes())
    assert alone == "The mean length of a vector at layer L0 is 0."


def test_a_spread_of_lengths_is_told_where_it_is() -> None:
    uneven = axes(samples=2)
    uneven[1] *= 3  # lengths 2 and 6: mean 4, standard deviation 2
    found = told(size.tell, Moments, axes(), uneven)
    assert found[-1] == (
        "Lengths vary most at layer L1: their standard deviation is 50% of their mean; in the "
        "median layer it is 25%."
    )


def test_lengths_over_many_sizes_get_a_logarithmic_axis() -> None:
    report = ak.scan(chain(Times(1.0), Times(30.0)), [axes()])
    assert page(report, "size").figures[0].log


# -- How sparse? ---------------------------------------------------------------------------------


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


# -- Which units dominate? -----------------------------------------------------------------------


def test_a_planted_massive_activation_is_found_where_it_was_planted() -> None:
    data = axes() + 0.5  # the median size is 0.5
    report = ak.scan(
        chain(Plant(-900.0, (3, 0, 4)), Times(1.0), Plant(7.0, (2, 5, 1)), Plant(0.5, (3, 0, 4))),
        [data],
    )
    assert page(report, "massive").findings == (
        "Against the rest of its layer, the largest activation is -900 in unit 4 at layer 0 "
        "(sample 3, position 0): 1,800 times the median size there.",
        "Unit 4 holds the largest activation of 3 of 4 layers.",
        "3 of 4 layers hold massive activations (over 100 and at least 1,000 times the median): "
        "layers 0 to 2, unit 4, the largest of each layer at position 0.",
    )
    (figure,) = page(report, "massive").figures
    assert figure.series["largest"] == (900.0, 900.0, 900.0, 7.0)
    assert figure.series["median"] == (0.5,) * 4


def test_massive_layers_with_gaps_and_several_units() -> None:
    plain = torch.full((2, 30, 5), 0.25)
    first, last = plain.clone(), plain.clone()
    first[0, 2, 4], last[1, 7, 1], last[1, 7, 3] = 300.0, -400.0, 350.0
    found = told(massive.tell, Massive, first, plain, last)
    assert len(found) == 2, "no unit is the largest in most layers"
    assert found[-1] == (
        "2 of 3 layers hold massive activations (over 100 and at least 1,000 times the median): "
        "layers L0 to L2 with gaps, units 1, 3 and 4, the largest of each layer at position 2 and "
        "7."
    )
    (sentence,) = [s for s in told(massive.tell, Massive, first) if "massive" in s]
    assert sentence.startswith("1 of 1 layer holds massive activations")
    assert "layer L0, unit 4" in sentence


def test_largest_activations_without_a_median_or_without_anything() -> None:
    lonely = torch.zeros(1, 30, 5)
    assert told(massive.tell, Massive, lonely)[0] == "Every activation is 0."
    lonely[0, 9, 2] = 3.0
    found = told(massive.tell, Massive, lonely)
    assert found[0] == (
        "Against the rest of its layer, the largest activation is 3 in unit 2 at layer L0 (sample "
        "0, position 9): the median size there is 0."
    )
    assert found[1] == "No activation is massive (over 100 and at least 1,000 times the median)."


def test_the_token_of_the_largest_activation_is_shown() -> None:
    own = Massive()
    acts, tokens = torch.ones(1, 3, 2), torch.tensor([[5, 6, 7]])
    acts[0, 1, 1] = -4.0
    own.update(acts[0], Rows.of(torch.ones(1, 3, dtype=torch.bool), tokens).flat())
    found, _ = massive.tell(["0"], [own.result()], "<{}>".format)
    assert "(sample 0, position 1, token '<6>'): 4 times the median" in found[0]


# -- How many dimensions? ------------------------------------------------------------------------


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


# -- Where does attention rest? ------------------------------------------------------------------


def attention(*first: float, num_tokens: int = 12) -> Tensor:
    """Return causal (1, T, heads, T) attention with a given mass on the first token, else even."""
    probs_1THT = torch.zeros(1, num_tokens, len(first), num_tokens)
    for t in range(num_tokens):
        for head, mass in enumerate(first):
            probs_1THT[0, t, head, 1 : t + 1] = (1 - mass) / max(t, 1)
            probs_1THT[0, t, head, 0] = mass if t else 1.0
    return probs_1THT


def test_planted_sinks_are_counted() -> None:
    layers = attention(0.25, 0.95, 0.05), attention(0.5, 0.29, 0.31)
    assert told(sinks.tell, Sinks, *layers)[:2] == [
        "39.2% of attention rests on the first token, from 36.7% at layer L1 to 41.7% at layer L0.",
        "3 of 6 heads give it more than 30%.",
    ]
    assert told(sinks.tell, Sinks, attention(0.5, 0.1))[:2] == [
        "30% of attention rests on the first token.",
        "1 of 2 heads gives it more than 30%.",
    ]
    assert told(sinks.tell, Sinks, attention(0.2))[1] == "No head gives it more than 30%."


def test_the_most_focused_layer_is_the_one_with_the_least_entropy() -> None:
    even, first = attention(1 / 12, num_tokens=13), attention(0.999)
    found = told(sinks.tell, Sinks, even, first)
    assert found[-1].startswith("Attention is most focused at layer L1, where its entropy is 0.")
    blind = told(sinks.tell, Sinks, attention(1.0))
    assert blind[-1] == "1 of 1 head gives it more than 30%.", "one key to see has no entropy"


def test_heads_that_a_layer_lacks_are_gaps_in_the_map() -> None:
    results = []
    for acts in (attention(0.5), attention(0.25, 0.75)):
        own = Sinks()
        own.update(acts[0], Rows.of(torch.ones(1, 12, dtype=torch.bool)).flat())
        results.append(own.result())
    found, (mean, figure) = sinks.tell(["a", "b"], results, None)
    assert mean.series["mean of the heads"] == pytest.approx((0.5, 0.5))
    assert mean.series["most of any head"] == pytest.approx((0.5, 0.75))
    assert figure.kind == "map" and figure.series["head 0"] == pytest.approx((0.5, 0.25))
    missing, there = figure.series["head 1"]
    assert missing != missing and there == pytest.approx(0.75)
    assert found[0].startswith("50% of attention"), "heads count alike"
