"""Which units dominate? Told of activations that were planted."""

import torch

import actkit as ak
from actkit.core.run.recording import Rows
from actkit.read.streaming.massive import Massive
from actkit.scanning.questions import massive
from tests.scanning.planted import Plant, Times, axes, chain
from tests.scanning.questions._told import page, told


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
