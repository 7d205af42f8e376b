"""The instrument on a second real model: known facts about Gemma-3-270M, a base model.

Shapes: B batch, T tokens, S keys, V vocabulary.
"""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.edits.edit import Edit
from actkit.model import Model
from tests.core.run.test_real import PAIRS, TEXTS, surprise
from tests.trace import _ioi

CHANNEL, BLOCK = 163, 3  # of the massive activation, and the block from which on it is the largest


@pytest.mark.parametrize(
    ("prompt", "answer", "probability"),
    [
        ("When Mary and John went to the store, John gave a drink to", " Mary", 0.853),
        ("The Eiffel Tower is in the city of", " Paris", 0.497),
        ("The opposite of hot is", " cold", 0.594),
    ],
)
def test_it_knows_what_it_is_known_to_know(
    gemma: Model, prompt: str, answer: str, probability: float
) -> None:
    ids = gemma.tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        probs_V = gemma.module(ids).logits[0, -1].softmax(-1)
    assert gemma.tokenizer.decode(probs_V.argmax()) == answer
    assert float(probs_V.max()) == pytest.approx(probability, abs=2e-3)


def test_it_is_a_base_model_that_completes(gemma: Model) -> None:
    """It goes on writing where an instructed model answers: " Paris" is third after "is"."""
    rec = gemma.run("The capital of France is", logits=True)
    probs_V, order_V = rec.logits[0, -1].softmax(-1).sort(descending=True)
    paris = gemma.tokenizer(" Paris", add_special_tokens=False)["input_ids"]
    assert order_V[:3].tolist().index(*paris) == 2
    assert float(probs_V[2]) == pytest.approx(0.084, abs=2e-3)
    assert gemma.tokenizer.chat_template is None


def test_it_is_what_it_is_said_to_be(gemma: Model) -> None:
    config: Any = gemma.module.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (18, 640, 262_144)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 1, 256)
    kinds = config.layer_types
    assert [i for i, kind in enumerate(kinds) if kind == "full_attention"] == [5, 11, 17]
    assert gemma.name == "gemma-270m" and not gemma.module.training
    assert {weight.dtype for weight in gemma.module.parameters()} == {torch.float32}
    assert sum(w.numel() for w in gemma.module.parameters()) == pytest.approx(268.1e6, rel=1e-3)
    assert not [name for name in sys.modules if name.startswith("gemma3_270m")]


def test_the_first_token_carries_a_massive_activation(gemma: Model) -> None:
    names = [f"resid_post.{i}" for i in (BLOCK - 1, BLOCK, BLOCK + 1)]
    rec = gemma.run(TEXTS, record=names)
    for b in range(len(TEXTS)):
        valid = rec.rows[b].valid
        before, at, after = (rec[name][b][valid].abs() for name in names)
        assert divmod(int(before.argmax()), 640) == (0, 400)
        assert divmod(int(at.argmax()), 640) == (0, CHANNEL)
        assert divmod(int(after.argmax()), 640) == (0, CHANNEL)
        assert after.max() / after.median() > 5_000


def test_the_activation_is_one_constant_since_every_text_begins_alike(gemma: Model) -> None:
    """The first token sees itself alone, and it is <bos> in every text."""
    rec = gemma.run(TEXTS, record="resid_post.12")
    first_B = (rec.rows.position == 0) & rec.rows.valid
    values_B = rec["resid_post.12"][first_B][:, CHANNEL]
    assert (rec.rows.token[first_B] == gemma.tokenizer.bos_token_id).all()
    assert values_B[0] == pytest.approx(99_535, rel=1e-3)
    assert values_B[1] == pytest.approx(float(values_B[0]), rel=1e-5)


def test_removing_it_breaks_the_model_and_removing_others_does_not(gemma: Model) -> None:
    site = "resid_post.12"
    plain = surprise(gemma)
    removed = surprise(gemma, ak.set(site, 0.0, ak.Where(tokens=0, units=CHANNEL)))
    control = surprise(gemma, ak.set(site, 0.0, ak.Where(tokens=0, units=[100, 300])))
    assert plain == pytest.approx(2.276, abs=0.01) and abs(control - plain) < 0.01
    assert removed == pytest.approx(4.507, abs=0.05)


def test_outputs_keep_every_bit(gemma: Model) -> None:
    batch = gemma.encode(TEXTS)
    with torch.no_grad():
        want = gemma.module(**batch.kwargs).logits
    with_all = gemma.run(TEXTS, record=["*.1?", "attn_probs.*", "z.*"], logits=True)
    assert torch.equal(with_all.logits, want)


@pytest.mark.slow
def test_states_and_attention_are_transformers_own(gemma: Model) -> None:
    """Across both kinds of attention: windows of 512 tokens, and full ones at 5, 11 and 17."""
    batch = gemma.encode(TEXTS[0] + (" " + TEXTS[1]) * 30)  # longer than a window
    config: Any = gemma.module.config
    assert batch.kwargs["input_ids"].shape[1] > config.sliding_window
    with torch.no_grad():
        body = gemma.module.get_submodule("model")(**batch.kwargs, output_hidden_states=True)
    want = body.hidden_states
    rec = gemma.run(batch, record=["resid_pre.*", "resid_post.*", "final_norm"])
    for i in range(18):
        assert torch.equal(rec[f"resid_pre.{i}"], want[i])
        after = rec["final_norm" if i == 17 else f"resid_post.{i}"]
        assert torch.equal(after, want[i + 1])
    probs = gemma.run(batch, record=["attn_probs.4", "attn_probs.5"])
    far = config.sliding_window + 1
    assert probs["attn_probs.4"].tril(-far).abs().max() == 0
    assert probs["attn_probs.5"].tril(-far).abs().max() > 1e-3


def test_a_batch_reads_like_single_prompts(gemma: Model) -> None:
    texts = [TEXTS[0], "The opposite of hot is"]
    together = gemma.run(texts, record="resid_post.*")
    for b, text in enumerate(texts):
        alone = gemma.run(text, record="resid_post.*")
        for name, x in alone.items():
            got = together[name][b][together.rows[b].valid]
            assert (got - x[0]).abs().max() < 1e-5 * x.abs().max()


@pytest.mark.slow
def test_indirect_objects_are_named_in_all_56_pairs(gemma: Model) -> None:
    trial = _ioi.pairs().on(gemma)
    assert int(trial.right.sum()) == 56
    assert float(trial.clean_values.mean()) == pytest.approx(4.07, abs=0.02)


def test_indirect_objects_are_read_by_attention_to_their_name(gemma: Model) -> None:
    """Cut the last token's attention to the indirect object, and its lead is gone."""
    prompts = [f"When {a} and {b} went to the store, {b} gave a drink to" for a, b in PAIRS]
    own = gemma.tokenizer
    io, subject = (
        torch.tensor([own(f" {p[i]}", add_special_tokens=False)["input_ids"][0] for p in PAIRS])
        for i in (0, 1)
    )

    def lead(logits_BPV: Tensor) -> Tensor:
        last_BV = logits_BPV[:, -1]
        times = len(last_BV) // len(PAIRS)
        return (
            last_BV.gather(1, io.repeat(times)[:, None])
            - last_BV.gather(1, subject.repeat(times)[:, None])
        )[:, 0]

    def cut(key: int) -> list[Edit]:  # <bos> is key 0, so names stand one further than elsewhere
        return [ak.scale("attn_probs.*", 0.0, ak.Where(tokens=-1, units=key))]

    plain, no_object, no_subject = gemma.sweep(prompts, [[], cut(2), cut(4)], lead, batch=5)
    assert (plain > 2).all()
    assert no_object.mean() < 0.4 * plain.mean()
    assert no_subject.mean() > plain.mean()


def test_a_capital_moves_with_the_late_stream(gemma: Model) -> None:
    sentence = "The capital of {} is the city of"
    prompts = [sentence.format(country) for country in ("France", "Japan")]
    names = ["resid_post.6", "resid_post.15"]
    italy = gemma.run([sentence.format("Italy")] * 2, record=names)

    def swapped(site: str) -> list[str]:
        edit = ak.swap(site, italy, ak.Where(tokens=-1, rows=0))
        return gemma.generate(prompts, [edit], max_new_tokens=2)

    assert gemma.generate(prompts, max_new_tokens=2) == [" Paris.", " Tokyo."]
    assert swapped("resid_post.6") == [" Paris.", " Tokyo."]
    assert swapped("resid_post.15") == [" Rome.", " Tokyo."]
