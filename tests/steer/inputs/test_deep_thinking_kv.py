"""Iterative forward tuning of a cache: its arithmetic, its place in a network, and sentiment."""

from random import Random
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

import actkit as ak
from actkit.core.compat import cache_keywords, output_cache
from actkit.core.errors import InputError, NotFittedError
from actkit.model import Model
from actkit.steer.inputs.deep_thinking_kv import DeepThinkingKV
from tests._evidence import Evidence
from tests.core import tiny

DEMOS = "w5 w17 w3 w8 w42 w9 w61 w7 w30"
QUERIES = ["w12 w2", "w55 w71 w4 w33 w8", "w3"]


def ordinary_cache(model: Model, text: str) -> list[Tensor]:
    """Return keys and values as the network itself caches them."""
    with torch.no_grad():
        cache = output_cache(model.module(**model.encode(text).kwargs, use_cache=True))
    return [x for layer in cache.layers for x in (layer.keys, layer.values)]


def vanilla(model: Model, demos: str, queries: list[str], join: str) -> Tensor:
    """Return the next token's log p where the network reads demonstrations and query at once."""
    texts = [f"{demos}{join}{q}" for q in queries]
    return model.run(texts, logits=True).logits[:, -1].log_softmax(-1)


def by_hand(model: Model, ids: Tensor, steps: int, first: int) -> list[Tensor]:
    """Return the memory of a few steps, layer by layer and with one velocity for each tensor."""
    net, length = model.module, ids.shape[1]
    memory: list[Tensor] = []
    velocity: list[Tensor] = []
    for step in range(steps):
        past: Any = tf.DynamicCache()
        for layer in range(len(memory) // 2):
            past.update(memory[2 * layer], memory[2 * layer + 1], layer)
        start = first if step else 0
        with torch.no_grad():
            out = net(
                input_ids=ids,
                position_ids=torch.arange(start, start + length)[None],
                attention_mask=torch.ones(1, length * (2 if step else 1)),
                use_cache=True,
                **cache_keywords(net, past),
            )
        layers = output_cache(out).layers
        new = [x[:, :, -length:] for n in layers for x in (n.keys, n.values)]
        if not memory:
            memory = new
            continue
        gradient = [n - old for n, old in zip(new, memory, strict=True)]
        last = velocity or [torch.zeros_like(g) for g in gradient]
        velocity = [g + 0.8 * v for g, v in zip(gradient, last, strict=True)]
        memory = [old + 0.05 * v for old, v in zip(memory, velocity, strict=True)]
    return memory


@pytest.mark.parametrize("positions", ["same", "after"])
def test_equals_a_loop_by_hand(positions: Any) -> None:
    model = tiny.model(torch.float64)
    kv = DeepThinkingKV(steps=5, rate=0.05, momentum=0.8, positions=positions).fit(model, DEMOS)
    ids = model.encode(DEMOS).kwargs["input_ids"]
    expected = by_hand(model, ids, 5, 0 if positions == "same" else ids.shape[1])
    assert len(kv.memory_) == 2 * tiny.LAYERS
    for found, wanted in zip(kv.memory_, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    plain = ordinary_cache(model, DEMOS)
    assert not torch.allclose(kv.memory_[-1], plain[-1], rtol=1e-3)


@pytest.mark.paper("iterative-forward-tuning-boosts")
def test_the_arithmetic(evidence: Evidence) -> None:
    kv = DeepThinkingKV(rate=0.01, momentum=0.9)
    start = [tiny.uneven(1, 2, 5, 7, seed=3, dtype=torch.float64)]
    memory, velocity = start, None
    for _ in range(15):
        memory, velocity = kv.refined(memory, [x + 1 for x in memory], velocity)
    expected = 0.01 * sum((1 - 0.9**k) / 0.1 for k in range(1, 16))
    error = (memory[0] - start[0] - expected).abs().max()
    evidence("15 updates by a constant gradient: error", measured=error, at_most=1e-6)
    same, velocity = kv.refined(start, start, None)
    changed = (same[0] != start[0]).sum() + velocity[0].count_nonzero()
    evidence("fixed point: entries that change", measured=changed, at_most=0)


@pytest.mark.paper("iterative-forward-tuning-boosts")
def test_the_first_step_is_in_context_learning(smollm2: Model, evidence: Evidence) -> None:
    demos, queries = "France: Paris\nItaly: Rome\nSpain: Madrid\n", ["Japan:", "Great Britain:"]
    kv = DeepThinkingKV(steps=1).fit(smollm2, demos)
    plain = ordinary_cache(smollm2, demos)
    changed = sum(int((x != y).sum()) for x, y in zip(kv.memory_, plain, strict=True))
    evidence("entries of the memory that are not the cache's", measured=changed, at_most=0)
    expected = vanilla(smollm2, demos, queries, "")
    found = kv.logits(smollm2, queries)[:, -1].log_softmax(-1)
    error = (found - expected).abs().max() / expected.abs().max()
    evidence("log p of the next token: relative error", measured=error, at_most=1e-5)
    written = smollm2.generate(kv.prompts(smollm2, queries), cache=kv.cache(2), max_new_tokens=3)
    assert written == smollm2.generate([demos + q for q in queries], max_new_tokens=3)
    assert [w.split("\n")[0] for w in written] == [" Tokyo", " London"]


def test_writing_equals_scoring_under_edits_too() -> None:
    """Queries of unequal lengths: each written token is the best one of the scores."""
    model = tiny.model()
    kv = DeepThinkingKV(steps=6, rate=0.1).fit(model, DEMOS)
    edits = [ak.add("resid_post.1", tiny.uneven(tiny.WIDTH), 0.7, ak.Where(tokens="last"))]
    for own in ([], edits):
        prompts, cache = kv.prompts(model, QUERIES), kv.cache(3)
        written = model.generate(prompts, edits=own, cache=cache, max_new_tokens=1)
        best = kv.logits(model, QUERIES, edits=own)[:, -1].argmax(-1).tolist()
        assert written == [f"w{token}" for token in best]
    whole = model.generate(kv.prompts(model, QUERIES), cache=kv.cache(3), max_new_tokens=4)
    for query, text in zip(QUERIES, whole, strict=True):
        for _ in range(4):
            query += f" w{int(kv.logits(model, [query])[0, -1].argmax())}"
        assert query.endswith(f" {text}")
    bare = vanilla(model, DEMOS, QUERIES, " ")
    assert not torch.allclose(kv.logits(model, QUERIES)[:, -1].log_softmax(-1), bare, atol=1e-2)
    one = DeepThinkingKV(steps=1).fit(model, DEMOS)
    torch.testing.assert_close(
        one.logits(model, QUERIES)[:, -1].log_softmax(-1), bare, rtol=1e-4, atol=1e-4
    )


def test_the_best_step_is_kept() -> None:
    model, scores = tiny.model(), [0.3, 0.1, 0.7, 0.7, 0.2]
    kv = DeepThinkingKV(steps=5, rate=0.1).fit(model, DEMOS, lambda own: scores[own.step_ - 1])
    assert (kv.step_, kv.scores_) == (3, scores)
    expected = DeepThinkingKV(steps=3, rate=0.1).fit(model, DEMOS)
    assert all(torch.equal(x, y) for x, y in zip(kv.memory_, expected.memory_, strict=True))
    assert kv.fit(model, "w1 w2").scores_ == []
    assert kv.step_ == 5
    assert kv.cache().get_seq_length() == 2


def test_half_precision_refines_in_single() -> None:
    model = tiny.model(torch.bfloat16)
    kv = DeepThinkingKV(steps=2, rate=1e-4).fit(model, DEMOS)
    assert kv.cache(2).layers[0].keys.dtype == torch.bfloat16
    moved = [(x != x.bfloat16()).any() for x in kv.memory_]
    assert any(moved), "so small a step would be lost in bfloat16"
    assert kv.logits(model, QUERIES).dtype == torch.bfloat16


def test_bad_input_is_refused() -> None:
    model = tiny.model()
    with pytest.raises(NotFittedError):
        DeepThinkingKV().cache()
    with pytest.raises(InputError, match="one row of tokens, got 2"):
        DeepThinkingKV().fit(model, ["w1", "w2"])
    with pytest.raises(InputError, match="context of 64 twice, got 33"):
        DeepThinkingKV().fit(model, " ".join(["w1"] * 33))
    with pytest.raises(InputError, match="at least 1 step"):
        DeepThinkingKV(steps=0).fit(model, DEMOS)
    with pytest.raises(InputError, match="lower the rate"):
        DeepThinkingKV(steps=9, rate=1e30).fit(model, DEMOS)
    config = tf.MambaConfig(vocab_size=89, hidden_size=24, num_hidden_layers=2, state_size=4)
    mamba: Any = tf.MambaForCausalLM(config)
    with pytest.raises(InputError, match="must cache keys and values"):
        DeepThinkingKV().fit(ak.open(mamba), torch.tensor([[1, 2, 3]]))


def reviews() -> tuple[str, list[tuple[str, int]]]:
    """Return 8 demonstrations, and short reviews with labels of +1 and -1 in a fixed order."""
    rows = [r for r in ak.data.sentiment() if len(r.positive) + len(r.negative) < 90]
    items = [(t, y) for r in rows for t, y in ((r.positive, 1), (r.negative, -1))]
    Random(0).shuffle(items)
    sides = [[i for i in items if i[1] == y][:4] for y in (1, -1)]
    demos = [item for pair in zip(*sides, strict=True) for item in pair]
    words = {1: " positive", -1: " negative"}
    text = "".join(f"Review: {t}\nSentiment:{words[y]}\n\n" for t, y in demos)
    return text, [i for i in items if i not in demos]


@pytest.mark.slow
@pytest.mark.paper("iterative-forward-tuning-boosts")
def test_sentiment_with_eight_demonstrations(smollm2: Model, evidence: Evidence) -> None:
    """The step is chosen on validation reviews by accuracy, among equal ones by log p."""
    demos, rest = reviews()
    validation, test = rest[:12], rest[12:52]
    assert len(test) == 40
    plus, minus = (smollm2.tokenizer(w)["input_ids"][0] for w in (" positive", " negative"))

    def rates(kv: DeepThinkingKV, items: list[tuple[str, int]]) -> tuple[float, float]:
        """Return accuracy, and log p of the right label among the two."""
        asked = [f"Review: {text}\nSentiment:" for text, _ in items]
        logits = kv.logits(smollm2, asked)[:, -1]
        margin = (logits[:, plus] - logits[:, minus]) * torch.tensor([y for _, y in items])
        log_p = torch.nn.functional.logsigmoid(margin).mean()
        return float((margin > 0).float().mean()), float(log_p)

    def score(kv: DeepThinkingKV) -> float:
        accuracy, log_p = rates(kv, validation)
        return accuracy + 1e-3 * log_p

    kv = DeepThinkingKV(steps=10).fit(smollm2, demos, score)
    plain = DeepThinkingKV(steps=1).fit(smollm2, demos)
    (own, own_log_p), (base, base_log_p) = rates(kv, test), rates(plain, test)
    gain = rates(kv, validation)[0] - rates(plain, validation)[0]
    evidence("validation accuracy, refined less vanilla", measured=gain, at_least=0)
    items = round(40 * (own - base))
    evidence("right of 40 test reviews, refined less vanilla", measured=items, at_least=-1)
    rise = own_log_p - base_log_p
    evidence("log p of the right label, refined less vanilla (nats)", measured=rise, at_least=0.01)
