"""How big are activations? Told of lengths that were planted."""

import actkit as ak
from actkit.read.streaming.moments import Moments
from actkit.scanning.questions import size
from tests.scanning.planted import Times, axes, chain
from tests.scanning.questions._told import page, told


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
