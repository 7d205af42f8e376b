"""Activation addition: exact at its layer, and wedding words with SmolLM2."""

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.steer.vectors.actadd import ActAdd
from tests._evidence import Evidence
from tests.core import tiny
from tests.steer._nats import kl, next_logs, perplexity_ratio

PAIRS = [("w1 w2 w3 w4", "w1 w5 w6 w7"), ("w9 w3 w4 w8", "w8 w4 w2 w1")]
BOS = "<|endoftext|>"


def test_vector_is_the_mean_difference_of_the_blocks_inputs() -> None:
    model = tiny.model()
    actadd = ActAdd(first=2).fit(model, PAIRS)
    for layer in range(tiny.LAYERS):
        site = f"resid_pre.{layer}"
        one_by_one = [
            model.run(p, record=site)[site][0, 2:] - model.run(n, record=site)[site][0, 2:]
            for p, n in PAIRS
        ]
        torch.testing.assert_close(
            actadd.vectors_[layer], torch.stack(one_by_one).mean(0), rtol=1e-4, atol=1e-5
        )


def test_shorter_prompts_are_padded_with_spaces(smollm2: Model) -> None:
    actadd = ActAdd(start=BOS).fit(smollm2, [(" a b c d", " x")])
    site, space = "resid_pre.17", smollm2.tokenizer(" ")["input_ids"]
    ids = [smollm2.tokenizer(BOS + text)["input_ids"] for text in (" a b c d", " x")]
    plus, minus = (smollm2.run([row], record=site)[site][0] for row in (ids[0], ids[1] + 3 * space))
    torch.testing.assert_close(actadd.vectors_[17], (plus - minus)[1:], rtol=1e-4, atol=1e-2)


def test_short_prompts_take_the_part_that_fits() -> None:
    model = tiny.model()
    edits = ActAdd(layers=1).fit(model, PAIRS).edits(2.0)
    site, prompt = "resid_pre.1", "w21 w22"
    moved = model.run(prompt, edits=edits, record=site)[site] - model.run(prompt, record=site)[site]
    vector = edits[0].operation.tensors()["vector"]
    torch.testing.assert_close(moved[0, 1], 2 * vector, rtol=1e-4, atol=1e-4)
    assert not moved[0, 0].any()


def test_written_tokens_are_steered_at_the_first_positions_only() -> None:
    """What follows the last position sees the vector by attention to earlier tokens alone."""
    model, site = tiny.model(), "resid_pre.1"
    edits = ActAdd(layers=1).fit(model, PAIRS).edits(2.0)
    long = "w21 w22 w23 w24 w25 w26"
    moved = model.run(long, edits=edits, record=site)[site] - model.run(long, record=site)[site]
    assert moved[0, 1:4].any(-1).all()
    assert not moved[0, 4:].any()
    logits = model.run(long, edits=edits, logits=True).logits
    bare = model.run(long, logits=True).logits
    assert bare is not None
    assert not torch.equal(logits[0, -1], bare[0, -1])


@pytest.mark.parametrize("first", [-1, 1, 7])
def test_positions_must_remain(first: int) -> None:
    with pytest.raises(InputError, match=f"leave one of the 1 .* first={first}"):
        ActAdd(first=first).fit(tiny.model(), [("w1", "w2")])


def test_only_texts_with_a_token_for_spaces_are_taken() -> None:
    with pytest.raises(InputError, match="space, got lengths 1 to 3"):
        ActAdd().fit(tiny.model(), [("w1 w2 w3", "w2")])
    with pytest.raises(InputError, match="texts"):
        ActAdd().fit(tiny.model(), [([1, 2], [3, 4])])
    with pytest.raises(InputError, match="pairs"):
        ActAdd().fit(tiny.model(), {"positive": ["w1 w2", "w3 w4"], "negative": ["w3 w3"]})


@pytest.mark.paper("activation-addition")
def test_the_stream_moves_by_the_vector_and_nowhere_else(evidence: Evidence) -> None:
    model, c, layer = tiny.model(), -3.0, 2
    actadd = ActAdd(layers=layer).fit(model, PAIRS[:1])
    site = f"resid_pre.{layer}"
    texts = [text.split() for text in PAIRS[0]]
    plus, minus = (model.run([[int(w[1:]) for w in text]], record=site)[site] for text in texts)
    edits = actadd.edits(c)
    rec = model.run(tiny.PROMPTS, edits=edits, record=site)
    moved = rec[site] - model.run(tiny.PROMPTS, record=site)[site]
    expected = torch.zeros_like(moved)
    for row, length in enumerate((7, 3, 5)):
        own = slice(7 - length + 1, min(7 - length + 4, 7))
        expected[row, own] = c * (plus - minus)[0, 1 : min(length, 4)]
    valid = rec.rows.valid
    error = (moved - expected)[valid].abs().max() / expected.abs().max()
    evidence("stream change less c (h+ - h-), share of its largest", measured=error, at_most=1e-6)

    same = ActAdd().fit(model, [("w1 w2 w3", "w1 w2 w3")]).edits(4.0)
    rest = [model.run(tiny.PROMPTS, edits=e, logits=True).logits for e in (same, [])]
    change = (rest[0] - rest[1])[valid].abs().max()
    evidence("logit change of a pair of equal prompts", measured=change, at_most=0.0)


WEDDING = (
    *(" wedding", " weddings", " bride", " groom", " marriage", " married", " marry"),
    *(" ceremony", " couple", " guests"),
)
NEUTRAL = (
    "I went up to my friend and said",
    "Yesterday we talked for hours about",
    "She opened the letter and began to read about",
    "The first thing that I want to tell you is",
)
ON_TOPIC = (
    "We met at church on a warm day in June. The bride wore a long white dress, and the groom "
    "could not stop smiling when the couple exchanged rings at the altar.",
    "After the ceremony all the guests walked to the garden. There the best man gave a speech "
    "about the marriage, and the bride and groom cut the wedding cake.",
)


@pytest.mark.slow
@pytest.mark.paper("activation-addition")
def test_weddings(smollm2: Model, evidence: Evidence) -> None:
    """One pair, added at one token, makes wedding words likely; random vectors do not."""
    ids = [smollm2.tokenizer(word)["input_ids"][0] for word in WEDDING]
    prompts = [BOS + prompt for prompt in NEUTRAL]

    def rises(variants: list[list[ak.Edit]]) -> Tensor:
        """Return the summed probability of wedding words over that without edits."""
        found = smollm2.sweep(
            prompts, [[], *variants], lambda logits: logits[:, -1].softmax(-1)[:, ids].sum(-1)
        ).sum(1)
        return found[1:] / found[0]

    def random(like: Tensor, layer: int, seed: int) -> list[ak.Edit]:
        u = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
        return [ak.add(f"resid_pre.{layer}", u / u.norm() * like.norm(), 1.0, ak.Where(tokens=1))]

    actadd = ActAdd(start=BOS).fit(smollm2, [(" weddings", " ")])
    layers = (6, 10, 15, 20)
    by_layer = rises([actadd.at(layer).edits(1.0) for layer in layers])
    best = layers[int(by_layer.argmax())]
    evidence("layer of the largest rise among 6, 10, 15, 20", measured=best, at_least=15)
    evidence("rise of wedding words at layer 20 (times)", measured=by_layer[3], at_least=5)
    (vector,) = actadd.vectors_[20]
    draws = rises([random(vector, 20, seed) for seed in range(10)])
    evidence("mean rise by 10 random vectors of its length", measured=draws.mean(), at_most=1.5)
    evidence("largest rise by them (times)", measured=draws.max(), at_most=5)

    edits = actadd.at(20).edits(1.0)
    prose = ak.data.text(num_samples=200)
    off_topic = [BOS + " ".join(prose[i : i + 6])[:180] for i in range(0, 100, 10)]
    late = torch.stack(
        [kl(*(next_logs(smollm2, t, e)[0, 21:] for e in ([], edits))).mean() for t in off_topic]
    )
    evidence(
        "mean KL after token 20 of 10 off-topic texts (nats)", measured=late.mean(), at_most=0.1
    )
    on_topic = [BOS + text for text in ON_TOPIC]
    ratios = [perplexity_ratio(smollm2, t, edits, first=3) for t in (on_topic, off_topic[:4])]
    evidence("perplexity of wedding texts over that without", measured=ratios[0], at_most=1)
    evidence("perplexity of off-topic texts over that without", measured=ratios[1], at_most=1.05)
