"""The claims of the paper on extreme tokens, on SmolLM2-135M-Instruct."""

import pytest

from actkit.model import Model
from actkit.read.streaming.extreme_tokens import (
    ExtremeTokens,
    ExtremeTokensResult,
    active_dormant_index,
)
from tests._evidence import Evidence
from tests.read.streaming.test_massive_on_smollm2 import TEXT

PEAK = 11
"""The stream peaks from this block on, counted from 0."""
CODE = """def read(path):
    with open(path) as file:
        lines = [line.strip() for line in file]
    return {i: line for i, line in enumerate(lines) if line}

"""


def layers(model: Model, text: str) -> list[ExtremeTokensResult]:
    tokens = model.tokenizer(text)["input_ids"][:41]
    assert len(tokens) == 41
    blocks = range(len(model.sites("resid_post.*")))
    keys = [(f"attn_probs.{n}", f"v.{n}", f"resid_post.{n}") for n in blocks]
    fed = model.observe([tokens], {key: [ExtremeTokens()] for key in keys})
    return [fed[key][0].result() for key in keys]


@pytest.mark.paper("active-dormant-attention-heads")
def test_first_tokens_are_extreme(smollm2: Model, evidence: Evidence) -> None:
    found = layers(smollm2, TEXT)
    evidence("first state / median length, after the block where the peak appears",
             measured=found[PEAK].peak, at_least=100)  # fmt: skip
    evidence("the same ratio one block before", measured=found[PEAK - 1].peak, at_most=2)
    evidence("heads of 270 with more than half of their attention on the first token",
             measured=sum(int(r.dormant_H.sum()) for r in found), at_least=80)  # fmt: skip
    evidence("mean attention on the first token in layers 0 and 1",
             measured=sum(float(r.sink_H.mean()) / 2 for r in found[:2]), at_most=0.1)  # fmt: skip
    evidence("layers of 30 whose first values are less than half as long as the median",
             measured=sum(float(r.drain_G.mean()) < 0.5 for r in found), at_least=20)  # fmt: skip

    # How much depends on the texts: 0.36 to 0.70 against five kinds of prose.
    other = layers(smollm2, CODE)[3:10]
    index = map(active_dormant_index, found[3:10], other)
    evidence("largest change of a head's sink from prose to Python code, layers 3 to 9",
             measured=max(float(i.max()) for i in index), at_least=0.5)  # fmt: skip
