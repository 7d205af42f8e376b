"""Where does attention rest? Told of attention that was planted."""

import pytest
import torch
from torch import Tensor

from actkit.core.run.recording import Rows
from actkit.read.streaming.sinks import Sinks
from actkit.scanning.questions import sinks
from tests.scanning.questions._told import told


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
