"""What steering does, measured: against closed forms and brute force."""

import math
from typing import Any

import pytest
import torch

import actkit as ak
from actkit.core.errors import InputError
from actkit.data import Opening
from actkit.model import Model
from actkit.steer._concept import Concept
from actkit.steer._dose import rescaled
from actkit.steer._measure import (
    distinct,
    divergence,
    effects,
    forced_loss,
    next_logits,
    perplexity,
    random_like,
    repetition,
)
from tests.core import tiny

V = tiny.uneven(tiny.WIDTH)
QUESTIONS = [Opening(f"w{i} w{i + 1}", ("w3", "w4"), ("w5",)) for i in (1, 20, 40)]
TASK = Concept("toy", [("w1", "w2"), ("w3", "w4")], QUESTIONS, "w60 w61")


def test_divergence_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    expected = 0.5 * math.log(2) - 0.25 * math.log(2)
    torch.testing.assert_close(divergence(p.log(), 3 + q.log()), torch.tensor([expected]))
    assert divergence(p.log(), p.log() + 7).item() < 1e-7


def test_next_logits_equal_a_run(minilm: Model) -> None:
    model = tiny.model()
    found = next_logits(model, tiny.PROMPTS, batch_size=2)
    for i, prompt in enumerate(tiny.PROMPTS):
        alone = model.run(prompt, logits=True).logits
        assert alone is not None
        torch.testing.assert_close(found[i], alone[0, -1], rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="no logits"):
        next_logits(minilm, ["no language model"])


def test_perplexity_by_hand() -> None:
    model = tiny.model()
    logits = model.run("w1 w2 w3 w4", logits=True).logits
    loss = [-logits[0, i].log_softmax(-1)[t].item() for i, t in ((1, 3), (2, 4))]
    other = model.run("w7 w8", logits=True).logits
    assert other is not None
    loss.append(-other[0, 0].log_softmax(-1)[8].item())
    found = perplexity(model, ["w1 w2", "w7", "w9"], ["w3 w4", "w8", ""])
    assert found == pytest.approx(math.exp(sum(loss) / 3), rel=1e-5)


def test_forced_loss_is_that_of_one_pass_and_edits_act_as_while_writing() -> None:
    model = tiny.model()
    ids = torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
    logits = model.run({"input_ids": ids}, logits=True).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert forced_loss(model, ids) == pytest.approx(expected.item(), rel=1e-5)
    last = [ak.add("resid_post.1", V, where=ak.Where(tokens="last"))]
    every = [ak.add("resid_post.1", V)]
    assert forced_loss(model, ids, last) == pytest.approx(forced_loss(model, ids, every), rel=1e-6)
    assert forced_loss(model, ids, last) != pytest.approx(expected.item(), rel=1e-3)


def decoded(model: Model, ids: torch.Tensor, edits: list[ak.Edit]) -> float:
    """Return the mean loss of tokens that are fed one by one, each with the cache before it."""
    losses, cache = [], None
    with torch.no_grad(), model.edited(edits):
        for step in range(ids.shape[1] - 1):
            out = model.module(input_ids=ids[:, step : step + 1], past_key_values=cache)
            cache = out.past_key_values
            losses.append(torch.nn.functional.cross_entropy(out.logits[:, -1], ids[:, step + 1]))
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("tokens", ["all", "last", "generated", "prompt", slice(2, None), 1])
@pytest.mark.parametrize("point", ["resid_post.1", "blocks.0.hook_mlp_out", "attn_probs.1"])
def test_one_pass_is_what_decoding_gives(tokens: Any, point: str) -> None:
    model, ids = tiny.model(), torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
    where = ak.Where(tokens=tokens)
    edits = [ak.scale(point, 0.3, where) if "attn" in point else ak.add(point, V, where=where)]
    assert forced_loss(model, ids, edits) == pytest.approx(decoded(model, ids, edits), rel=1e-5)
    if tokens != "prompt":
        assert abs(forced_loss(model, ids, edits) - forced_loss(model, ids)) > 1e-4


def test_the_speed_is_a_ratio_after_both_sides_have_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, clock, turns = tiny.model(), [0.0], []
    plain = Model.generate

    def generate(self: Model, *args: Any, **settings: Any) -> list[str]:
        edited = bool(settings.get("edits"))
        first = edited not in turns
        turns.append(edited)
        clock[0] += 100.0 if first else 3.0 if edited else 2.0
        return plain(self, *args, **settings)

    monkeypatch.setattr(Model, "generate", generate)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    found = effects(model, [ak.add("resid_post.1", V)], TASK, max_new_tokens=3)
    assert found.tokens_per_second == pytest.approx(2 / 3)


def test_distinct_and_repetition_by_hand() -> None:
    assert distinct([1, 2, 1, 2, 3]) == 3 / 4
    assert distinct([1]) == 1
    assert repetition([1, 2, 1, 5, 6, 7, 8, 1]) == 1 / 8
    assert repetition([]) == 0


def test_random_vectors_are_as_long_and_seeded() -> None:
    edits = [ak.add("resid_post.1", V, 0.5, ak.Where(tokens="last")), ak.add("resid_post.2", 3 * V)]
    drawn = random_like(edits, 0)
    for old, new in zip(edits, drawn, strict=True):
        v, u = old.operation.tensors()["vector"], new.operation.tensors()["vector"]
        torch.testing.assert_close(u.norm(), v.norm())
        assert torch.cosine_similarity(u, v, dim=0).abs() < 0.5
        assert (new.site, new.where) == (old.site, old.where)
    again, other = random_like(edits, 0)[0], random_like(edits, 1)[0]
    assert torch.equal(again.operation.tensors()["vector"], drawn[0].operation.tensors()["vector"])
    assert not torch.equal(
        other.operation.tensors()["vector"], drawn[0].operation.tensors()["vector"]
    )
    with pytest.raises(InputError, match="got scale"):
        random_like([ak.scale("resid_post.1", 2.0)], 0)


def test_rescaled_edits_equal_another_strength() -> None:
    model = tiny.model()
    edits = [ak.add("resid_post.1", V, 0.5)]
    for factor in (3.0, torch.tensor([0.0, 1.0, -2.0])):
        found = next_logits(model, tiny.PROMPTS, rescaled(edits, factor))
        expected = next_logits(model, tiny.PROMPTS, [ak.add("resid_post.1", V, 0.5 * factor)])
        assert torch.equal(found, expected)
    with pytest.raises(ak.errors.EditError, match="got set"):
        rescaled([ak.set("resid_post.1", V)], 2.0)


def test_no_edit_has_no_effect() -> None:
    found = effects(tiny.model(), [], TASK, max_new_tokens=6)
    facts = found.to_dict()
    assert found.tokens_per_second > 0 and "tokens_per_second" not in facts
    assert (facts["concept"], facts["kl"], facts["text_loss"], facts["fact_loss"]) == (0, 0, 0, 0)
    assert facts["perplexity"] == 1


def test_effects_by_hand() -> None:
    model, edits = tiny.model(), [ak.add("resid_post.1", V, 2.0)]
    found = effects(model, edits, TASK, max_new_tokens=6)
    base, moved = next_logits(model, TASK.prompts), next_logits(model, TASK.prompts, edits)
    rise = (TASK.log_odds(model, moved) - TASK.log_odds(model, base)).mean()
    assert found.concept == pytest.approx(rise.item(), rel=1e-5)
    assert found.kl == pytest.approx(divergence(base, moved).mean().item(), rel=1e-5)
    assert found.text_loss != 0


def test_a_prefix_is_measured_as_edits_are() -> None:
    model: Any = tiny.model()
    found = effects(model, [], TASK, max_new_tokens=4, prefix=TASK.instruction)
    told = next_logits(model, [f"{TASK.instruction} {p}" for p in TASK.prompts])
    expected = divergence(next_logits(model, TASK.prompts), told).mean()
    assert found.kl == pytest.approx(expected.item(), rel=1e-5)


def test_random_directions_do_less_than_the_concept_s_own(smollm2: Model) -> None:
    """The measure that methods are ranked by tells a direction from noise of its length."""
    task = ak.steer.as_task("sentiment")
    task, _ = task.halves(0)
    edits = ak.get("caa")(layers=18).fit(smollm2, task.examples.sample(0.3, 0)).edits(2.0)
    base = next_logits(smollm2, task.prompts)

    def rise(own: list[ak.Edit]) -> float:
        moved = next_logits(smollm2, task.prompts, own)
        return float((task.log_odds(smollm2, moved) - task.log_odds(smollm2, base)).mean())

    noise = [rise(random_like(edits, seed)) for seed in range(6)]
    assert rise(edits) > max(noise) + 1
