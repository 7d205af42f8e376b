"""Visual steering vectors: lengths kept, a closed form, and evidence given to SmolLM2 and LLaVA."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

import actkit as ak
from actkit.core.errors import EditError, InputError
from actkit.model import Model
from actkit.steer.vectors.vista import TurnTowardsEvidence, Vista
from tests._evidence import Evidence
from tests.core import tiny
from tests.core.sites.architectures.parity import randomised

PAIRS = [("w9 w1 w2 w3", "w1 w2 w3"), ("w8 w11 w12", "w11 w12"), ("w7 w4 w6 w5", "w6 w5")]
PROMPTS = tiny.PROMPTS


def logits(model: Model, edits: Any, prompts: Any = PROMPTS) -> Tensor:
    return model.run(prompts, edits=edits, logits=True).logits[:, -1]


def test_vectors_are_the_differences_of_last_states() -> None:
    model = tiny.model()
    vista = Vista().fit(model, PAIRS)
    for layer in range(tiny.LAYERS):
        site = f"resid_post.{layer}"
        for row, (plus, minus) in enumerate(PAIRS):
            with_, without = (model.run(p, record=site)[site][0, -1] for p in (plus, minus))
            own = vista.vectors_[layer][row]
            torch.testing.assert_close(own, with_ - without, rtol=1e-4, atol=1e-5)


def by_hand(x: Tensor, v: Tensor, dose: float, simple: bool) -> Tensor:
    """Return the formula, one vector at a time."""
    out = torch.empty_like(x)
    for i in range(len(x)):
        h, length = x[i], x[i].pow(2).sum().sqrt()
        cos = float(h @ -v / (length * v.pow(2).sum().sqrt()))
        weight = 1.0 if simple or cos < 0 else 1 + cos
        moved = h / length + dose * weight * v / v.pow(2).sum().sqrt()
        out[i] = length * moved / moved.pow(2).sum().sqrt()
    return out


@pytest.mark.paper("hidden-life-tokens-reducing")
@pytest.mark.parametrize("simple", [False, True], ids=["factor", "simple"])
def test_turning_keeps_lengths(simple: bool, evidence: Evidence) -> None:
    x, v = tiny.uneven(9, 23, seed=1), tiny.uneven(23, seed=2) - 0.9
    cosines = torch.cosine_similarity(x, v, dim=-1)
    assert cosines.min() < 0 < cosines.max(), "both sides of the factor are met"
    turned = TurnTowardsEvidence(v, simple, strength=0.37)(x[None])[0]
    change = (turned.norm(dim=-1) / x.norm(dim=-1) - 1).abs().max()
    evidence("relative change of length", measured=change, at_most=1e-5)
    expected = by_hand(x.double(), v.double(), 0.37, simple)
    error = (turned - expected).abs().max()
    evidence("error against the formula in float64", measured=error, at_most=1e-5)


def test_each_row_is_steered_by_its_own_pair() -> None:
    model = tiny.model()
    vista = Vista(scale=0.4).fit(model, PAIRS)
    strengths = torch.tensor([1.0, 0.0, 0.5])
    together = logits(model, vista.edits(strengths))
    assert torch.equal(together[1], logits(model, [])[1]), "a strength of 0 changes no bit"
    for row, strength in enumerate(strengths.tolist()):
        own = Vista(scale=0.4).fit(model, [PAIRS[row]])
        alone = logits(model, own.edits(strength), [PROMPTS[row]])
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)
    one_row = [
        ak.Edit(e.site, e.operation, ak.Where(tokens="last", rows=[2])) for e in vista.edits()
    ]
    chosen = logits(model, one_row)
    torch.testing.assert_close(chosen[2], logits(model, vista.edits(1.0))[2], rtol=1e-4, atol=1e-4)
    assert torch.equal(chosen[:2], logits(model, [])[:2])


def test_a_batch_of_another_size_is_refused() -> None:
    model = tiny.model()
    with pytest.raises(EditError, match="broadcast"):
        logits(model, Vista().fit(model, PAIRS).edits(), PROMPTS[:2])


def test_one_pair_steers_every_row_and_the_paper_s_own_form() -> None:
    model = tiny.model()
    edits = Vista(layers=1, point="resid_post", simple=True).fit(model, PAIRS[:1]).edits(2.0)
    v = Vista().fit(model, PAIRS[:1]).vectors_[1]
    bare = model.run(PROMPTS, "resid_post.1")["resid_post.1"][:, -1]
    moved = bare + 0.2 * bare.norm(dim=-1, keepdim=True) * v / v.norm()
    expected = moved / moved.norm(dim=-1, keepdim=True) * bare.norm(dim=-1, keepdim=True)
    found = model.run(PROMPTS, "resid_post.1", edits)["resid_post.1"]
    torch.testing.assert_close(found[:, -1], expected)


def test_saved_and_written_with(tmp_path: Path) -> None:
    model = tiny.model()
    vista = Vista(scale=0.5).fit(model, PAIRS)
    vista.save(tmp_path / "vista.safetensors", model, strength=0.7)
    loaded = ak.load_edits(tmp_path / "vista.safetensors", model)
    assert torch.equal(logits(model, loaded), logits(model, vista.edits(0.7)))


def test_every_written_token_is_steered() -> None:
    """Tokens equal those of a loop that runs the steered positions anew at each step."""
    model = tiny.model()
    edits = Vista(scale=0.5).fit(model, PAIRS[:1]).edits()
    text, steered = PROMPTS[0], []
    for step in range(5):
        where = ak.Where(tokens=list(range(6, 7 + step)))
        at = [ak.Edit(e.site, e.operation, where) for e in edits]
        steered.append(f"w{int(logits(model, at, text).argmax())}")
        text = f"{text} {steered[-1]}"
    written = model.generate(PROMPTS[:1], edits=edits, max_new_tokens=5)
    assert written == [" ".join(steered)]
    assert written != model.generate(PROMPTS[:1], max_new_tokens=5)


def test_what_cannot_steer_is_refused() -> None:
    with pytest.raises(InputError, match="must move the last token's state"):
        Vista().fit(tiny.model(), [PAIRS[0], ("w1 w2", "w1 w2")])
    with pytest.raises(InputError, match="pairs"):
        Vista().fit(tiny.model(), {"positive": ["w1", "w2"], "negative": ["w3"]})


IMAGE = 77


def llava() -> Model:
    """A tiny LLaVA: nine patches of a picture among its tokens."""
    sizes: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 3}
    eye = tf.CLIPVisionConfig(
        **sizes, num_attention_heads=3, intermediate_size=37, image_size=15, patch_size=5
    )
    text = tf.LlamaConfig(
        **sizes, num_attention_heads=4, intermediate_size=31, vocab_size=91, pad_token_id=0
    )
    config = tf.LlavaConfig(vision_config=eye, text_config=text, image_token_index=IMAGE)
    return Model(randomised(tf.LlavaForConditionalGeneration(config)), tiny.tokenizer())


@pytest.mark.paper("hidden-life-tokens-reducing")
def test_an_image_left_out_of_llava_comes_back(evidence: Evidence) -> None:
    """Turned after the last block by |v| / |h|, states without the images point where those with
    them do, and the final norm asks for no more.
    """
    model = llava()
    seen = {
        "input_ids": torch.tensor([[5, *[IMAGE] * 9, 17, 3]]).expand(2, -1),
        "attention_mask": torch.ones(2, 12, dtype=torch.long),
        "pixel_values": tiny.uneven(2, 3, 15, 15),
    }
    unseen = {"input_ids": torch.tensor([[5, 17, 3]]).expand(2, -1)}
    vista = Vista(layers=2, scale=1.0, point="resid_post", simple=True).fit(model, [(seen, unseen)])
    h = model.run(unseen, "resid_post.2")["resid_post.2"][:, -1]
    edits = vista.edits(vista.vectors_[2].norm(dim=-1) / h.norm(dim=-1))
    goal, bare, steered = (
        logits(model, own, prompts).log_softmax(-1)
        for own, prompts in (([], seen), ([], unseen), (edits, unseen))
    )
    apart = (goal - bare).abs().max(-1).values.min()
    evidence("log p with and without its image, smallest of 2 (nats)", measured=apart, at_least=0.5)
    error = (goal - steered).abs().max()
    evidence("log p with its image, and steered without (nats)", measured=error, at_most=1e-3)
    every = Vista(scale=0.5).fit(model, [(seen, unseen)])
    assert torch.equal(logits(model, every.edits(0.0), unseen), logits(model, [], unseen))
    assert not torch.equal(logits(model, every.edits(), unseen), logits(model, [], unseen))


WORDS = (
    *("apple", "river", "copper", "violin", "tiger", "window", "candle", "garden", "silver"),
    *("rocket", "pencil", "basket", "coffee", "winter", "monkey", "castle", "bridge", "pepper"),
    *("island", "dragon", "butter", "mirror", "button", "planet", "forest", "hammer", "lemon"),
    *("ocean", "tunnel", "velvet", "wallet", "yellow", "anchor", "banana", "camera", "desert"),
    *("engine", "falcon", "guitar", "helmet", "jacket", "kitten", "ladder", "magnet", "needle"),
    *("orange", "parrot", "rabbit", "saddle", "turtle"),
)
"""50 code words."""
QUERY = "The code word is"


def code_words(model: Model) -> tuple[float, list[float]]:
    """Return the rise of log p of 50 code words by their evidence's vectors, and by random ones."""
    given = [f"Note: the code word is {w}.\n{QUERY}" for w in WORDS]
    vista = Vista(scale=0.05).fit(model, [(g, QUERY) for g in given])
    assert len(WORDS) == 50
    tokens = (model.tokenizer(f" {w}", add_special_tokens=False)["input_ids"] for w in WORDS)
    first = [own[0] for own in tokens]
    bare = logits(model, [], QUERY).log_softmax(-1)[0, first]

    def rise(edits: Any) -> float:
        steered = logits(model, edits, [QUERY] * 50).log_softmax(-1)
        return float((steered[range(50), first] - bare).mean())

    assert torch.equal(logits(model, vista.edits(0.0), QUERY), logits(model, [], QUERY))
    width, changes = vista.vectors_[0].shape[-1], []
    for seed in range(5):
        gen = torch.Generator().manual_seed(seed)
        random = [
            ak.Edit(
                e.site,
                TurnTowardsEvidence(torch.randn(50, width, generator=gen), strength=vista.scale),
                e.where,
            )
            for e in vista.edits()
        ]
        changes.append(rise(random))
    return rise(vista.edits()), changes


@pytest.mark.slow
@pytest.mark.paper("hidden-life-tokens-reducing")
def test_evidence_that_was_removed(smollm2: Model, evidence: Evidence) -> None:
    """50 code words, each with the vector of its own evidence, and with random ones."""
    rise, changes = code_words(smollm2)
    evidence("rise of log p of the code word (nats)", measured=rise, at_least=1)
    largest = max(map(abs, changes))
    evidence("largest change by 5 random vectors (nats)", measured=largest, at_most=0.3)
