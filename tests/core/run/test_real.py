"""The instrument on a real model: known facts about SmolLM2-135M-Instruct.

Shapes: B batch, T tokens, D width.
"""

import torch
from torch import Tensor

import actkit as ak
from actkit.core.edits.edit import Edit
from actkit.model import Model

TEXTS = [
    "The quick brown fox jumps over the lazy dog and runs away into the deep forest.",
    "It was the best of times, it was the worst of times, and nobody knew which.",
]
CHANNEL, BLOCK = 507, 11  # of the massive activation, and the block that writes it


def surprise(m: Model, *edits: Edit) -> float:
    """Return the mean negative log-likelihood of the texts' tokens, in nats."""
    rec = m.run(TEXTS, edits=edits, logits=True)
    logs_BT = rec.logits[:, :-1].log_softmax(-1).gather(-1, rec.rows.token[:, 1:, None])[..., 0]
    return float(-logs_BT[rec.rows.valid[:, :-1]].mean())


def test_the_first_token_carries_a_massive_activation(smollm2: Model) -> None:
    rec = smollm2.run(TEXTS, record=["resid_post.10", f"resid_post.{BLOCK}"])
    for b in range(len(TEXTS)):
        acts_ND, rows = rec[f"resid_post.{BLOCK}"][b], rec.rows[b]
        flat = int(acts_ND[rows.valid].abs().argmax())
        assert divmod(flat, 576) == (0, CHANNEL)
        ratio = acts_ND[rows.valid].abs().max() / acts_ND[rows.valid].abs().median()
        assert ratio > 5_000
    assert rec["resid_post.10"][rec.rows.valid].abs().max() < 500


def test_removing_it_breaks_the_model_and_removing_others_does_not(smollm2: Model) -> None:
    site = f"resid_post.{BLOCK}"
    plain = surprise(smollm2)
    removed = surprise(smollm2, ak.set(site, 0.0, ak.Where(tokens=0, units=CHANNEL)))
    control = surprise(smollm2, ak.set(site, 0.0, ak.Where(tokens=0, units=[100, 506])))
    assert plain < 4 and abs(control - plain) < 0.3
    assert removed > plain + 8


def test_outputs_keep_every_bit_on_a_real_model(smollm2: Model) -> None:
    batch = smollm2.encode(TEXTS)
    with torch.no_grad():
        want = smollm2.module(**batch.kwargs).logits
    with_all = smollm2.run(TEXTS, record=["*.1?", "attn_probs.*", "z.*"], logits=True)
    assert torch.equal(with_all.logits, want)


PAIRS = [("Mary", "John"), ("Tom", "James"), ("Anna", "Sarah"), ("David", "Paul"), ("John", "Anna")]


def test_indirect_objects_are_read_by_attention_to_their_name(smollm2: Model) -> None:
    """Cut the last token's attention to the indirect object, and its lead is gone."""
    prompts = [f"When {a} and {b} went to the store, {b} gave a drink to" for a, b in PAIRS]
    own = smollm2.tokenizer
    io, subject = (
        torch.tensor([own(f" {pair[i]}")["input_ids"][0] for pair in PAIRS])[:, None]
        for i in (0, 1)
    )

    def lead(logits_BPV: Tensor) -> Tensor:
        last_BV = logits_BPV[:, -1]
        times = len(last_BV) // len(PAIRS)
        gap = last_BV.gather(1, io.repeat(times, 1)) - last_BV.gather(1, subject.repeat(times, 1))
        return gap[:, 0]

    def cut(key: int) -> list[Edit]:
        return [ak.scale("attn_probs.*", 0.0, ak.Where(tokens=-1, units=key))]

    plain, no_object, no_subject = smollm2.sweep(prompts, [[], cut(1), cut(3)], lead, batch=5)
    assert (plain > 2).all() and 4 < plain.mean() < 7
    assert no_object.mean() < 0.4 * plain.mean()
    assert no_subject.mean() > plain.mean()


def test_a_capital_moves_with_the_late_stream(smollm2: Model) -> None:
    prompts = ["The capital of France is", "The capital of Japan is"]
    italy = smollm2.run(["The capital of Italy is"] * 2, record=["resid_post.10", "resid_post.24"])

    def swapped(site: str) -> list[str]:
        edit = ak.swap(site, italy, ak.Where(tokens=-1, rows=0))
        return smollm2.generate(prompts, [edit], max_new_tokens=2)

    assert smollm2.generate(prompts, max_new_tokens=2) == [" Paris.", " Tokyo."]
    assert swapped("resid_post.10") == [" Paris.", " Tokyo."]
    assert swapped("resid_post.24") == [" Rome.", " Tokyo."]
