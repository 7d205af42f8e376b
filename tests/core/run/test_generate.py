"""Edits in KV-cached generation against a loop that keeps no cache and sees one row at a time.

Shapes: B batch, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import actkit as ak
from actkit.core.compat import cache_keywords, output_cache
from actkit.core.edits.edit import Edit
from actkit.core.errors import EditError, InputError
from actkit.model import Model
from tests.core import tiny

NEW = 5
LENGTHS = [7, 3, 5]
VECTOR = 4 * tiny.uneven(tiny.WIDTH, seed=11)
SITE = "resid_post.1"


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


def network(m: Model) -> Any:
    return m.module


def ids_of(prompt: str) -> list[int]:
    return [int(w[1:]) for w in prompt.split()]


def naive(
    m: Model, prompt: str, edit_at: Callable[[Tensor, int], list[Edit]], new: int = NEW
) -> tuple[list[int], Tensor]:
    """Write tokens without a cache; `edit_at(positions, prompt length)` gives the edits.

    Returns:
        The new tokens, and the (new, V) logits that they were taken from.
    """
    ids, length, all_logits = ids_of(prompt), len(prompt.split()), []
    for _ in range(new):
        edits = edit_at(torch.arange(len(ids)), length)
        logits = m.run([ids], edits=edits, logits=True).logits
        all_logits.append(logits[0, -1])
        ids.append(int(logits[0, -1].argmax()))
    return ids[length:], torch.stack(all_logits)


def always(edit: Edit) -> Callable[[Tensor, int], list[Edit]]:
    return lambda positions, length: [edit]


def masked(make: Callable[[ak.Where], Edit], chosen: Tensor) -> list[Edit]:
    """Return the edit at the chosen positions, nothing if there is none."""
    return [make(ak.Where(tokens=chosen[None]))] if chosen.any() else []


def cached(m: Model, edits: Sequence[Edit], **settings: Any) -> tuple[Tensor, Tensor]:
    """Return tokens (B, new) and logits (B, new, V) of the network's own generate."""
    inputs = {k: v for k, v in m.encode(tiny.PROMPTS).kwargs.items() if k != "position_ids"}
    with m.edited(edits), torch.no_grad():
        out = network(m).generate(
            **inputs, do_sample=False, max_new_tokens=NEW, pad_token_id=0,
            output_logits=True, return_dict_in_generate=True, **settings,
        )  # fmt: skip
    return out.sequences[:, 7:], torch.stack(out.logits, 1)


Chooser = Callable[[Tensor, int], Tensor]
CHOICES: dict[str, tuple[Any, Chooser]] = {
    "all": ("all", lambda p, n: p >= 0),
    "prompt": ("prompt", lambda p, n: p < n),
    "generated": ("generated", lambda p, n: p >= n),
    "last": ("last", lambda p, n: p >= n - 1),
    "first": (0, lambda p, n: p == 0),
    "third": (2, lambda p, n: p == 2),
    "sixth, of some the written one": (6, lambda p, n: p == 6),
    "end of the prompt": (-1, lambda p, n: p == n - 1),
    "before it": ([-2, 0], lambda p, n: (p == n - 2) | (p == 0)),
    "from the second on": (slice(1, None), lambda p, n: p >= 1),
    "two of the prompt's last and on": (slice(-2, None), lambda p, n: p >= n - 2),
    "up to the prompt's last": (slice(None, -1), lambda p, n: p < n - 1),
    "every third": (slice(1, None, 3), lambda p, n: (p >= 1) & ((p - 1) % 3 == 0)),
    "a span over the end": (slice(2, 8, 2), lambda p, n: (p >= 2) & (p < 8) & (p % 2 == 0)),
}


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", CHOICES)
def test_tokens_in_generation(m: Model, name: str, cache: str) -> None:
    tokens, chooser = CHOICES[name]
    settings = {"cache_implementation": "static"} if cache == "static" else {}
    got, logits = cached(m, [ak.add(SITE, VECTOR, where=ak.Where(tokens=tokens))], **settings)
    for b, prompt in enumerate(tiny.PROMPTS):
        want, want_logits = naive(
            m, prompt, lambda p, n: masked(lambda w: ak.add(SITE, VECTOR, where=w), chooser(p, n))
        )
        assert got[b].tolist() == want
        assert_close(logits[b], want_logits, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("steps", "inside"),
    [
        (0, lambda s: s == 0),
        (2, lambda s: s == 2),
        ([1, 3], lambda s: (s == 1) | (s == 3)),
        (slice(2, None), lambda s: s >= 2),
        (slice(0, 4, 2), lambda s: (s == 0) | (s == 2)),
        (torch.tensor([False, True, False, True]), lambda s: (s == 1) | (s == 3)),
    ],
    ids=["first", "one", "several", "from", "every-second", "mask"],
)
@pytest.mark.parametrize("tokens", ["all", "last", -1, slice(-2, None)], ids=str)
def test_steps_in_generation(m: Model, steps: Any, inside: Any, tokens: Any) -> None:
    """Step 0 is the prompt, step s the pass over the s-th written token."""
    where = ak.Where(tokens=tokens, steps=steps)
    if tokens == -1 and not inside(torch.tensor(0)):  # the prompt's end is of step 0 only
        with pytest.raises(
            EditError, match=r"the add at resid_post\.1 met nothing where tokens=-1"
        ):
            cached(m, [ak.add(SITE, VECTOR, where=where)])
        return
    got, logits = cached(m, [ak.add(SITE, VECTOR, where=where)])
    choose: dict[str, Chooser] = {
        "all": lambda p, n: p >= 0,
        "last": lambda p, n: p >= n - 1,
        "-1": lambda p, n: p == n - 1,
        "slice(-2, None, None)": lambda p, n: p >= n - 2,
    }
    for b, prompt in enumerate(tiny.PROMPTS):
        want, want_logits = naive(
            m,
            prompt,
            lambda p, n: masked(
                lambda w: ak.add(SITE, VECTOR, where=w),
                inside((p - n + 1).clamp_min(0)) & choose[str(tokens)](p, n),
            ),
        )
        assert got[b].tolist() == want
        assert_close(logits[b], want_logits, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "site", ["z.1", "attn_probs.1", "k.0", "resid_mid.2", "model.layers.0.mlp:out"]
)
def test_other_sites_in_generation(m: Model, site: str) -> None:
    def make(where: ak.Where) -> Edit:
        return ak.scale(site, 0.2, where)

    got, logits = cached(m, [make(ak.Where(tokens=slice(2, None)))])
    for b, prompt in enumerate(tiny.PROMPTS):
        want, want_logits = naive(m, prompt, lambda p, n: masked(make, p >= 2))
        assert got[b].tolist() == want
        assert_close(logits[b], want_logits, rtol=0, atol=2e-4)


def test_a_mask_speaks_of_the_prompt(m: Model) -> None:
    mask_BT = torch.zeros(3, 7, dtype=torch.bool)
    mask_BT[0, 1] = mask_BT[1, 5] = mask_BT[2, 6] = True  # rows start at 0, 4 and 2
    got, _ = cached(m, [ak.add(SITE, VECTOR, where=ak.Where(tokens=mask_BT))])
    for b, (prompt, at) in enumerate(zip(tiny.PROMPTS, (1, 1, 4), strict=True)):
        edit = ak.add(SITE, VECTOR, where=ak.Where(tokens=at))
        assert got[b].tolist() == naive(m, prompt, always(edit))[0]


def test_rows_vectors_and_strengths_of_a_batch(m: Model) -> None:
    """Different edits in one batch write what they write one by one."""
    vectors_BD = 4 * tiny.uneven(3, tiny.WIDTH, seed=12)
    strengths_B = torch.tensor([1.0, 0.0, -1.5])
    texts = m.generate(tiny.PROMPTS, [ak.add(SITE, vectors_BD, strengths_B)], max_new_tokens=NEW)
    by_rows = m.generate(
        tiny.PROMPTS,
        [
            ak.add(SITE, v, float(s), ak.Where(rows=i))
            for i, (v, s) in enumerate(zip(vectors_BD, strengths_B, strict=True))
        ],
        max_new_tokens=NEW,
    )
    assert by_rows == texts
    for b, prompt in enumerate(tiny.PROMPTS):
        edit = ak.add(SITE, vectors_BD[b], float(strengths_B[b]))
        assert m.generate(prompt, [edit], max_new_tokens=NEW) == [texts[b]]
        assert naive(m, prompt, always(edit))[0] == ids_of(texts[b])


def test_plain_generation_is_the_networks_own(m: Model) -> None:
    got, _ = cached(m, [])
    texts = m.generate(tiny.PROMPTS, max_new_tokens=NEW)
    assert [ids_of(t) for t in texts] == got.tolist()
    zero = m.generate(tiny.PROMPTS, [ak.add(SITE, VECTOR, 0)], max_new_tokens=NEW)
    assert zero == texts
    assert m.generate(tiny.PROMPTS, [ak.add(SITE, VECTOR)], max_new_tokens=NEW) != texts


@pytest.mark.parametrize(
    "settings", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}]
)
def test_beam_search_equals_an_edit_written_into_the_weights(
    m: Model, settings: dict[str, Any]
) -> None:
    old = network(m).model.layers[1].mlp.down_proj
    biased = nn.Linear(tiny.HIDDEN, tiny.WIDTH)
    with torch.no_grad():
        biased.weight.copy_(old.weight)
        biased.bias.copy_(VECTOR)
    with m.replaced({"model.layers.1.mlp.down_proj": biased}):
        want = m.generate(tiny.PROMPTS, max_new_tokens=NEW, **settings)
    got = m.generate(tiny.PROMPTS, [ak.add("mlp_out.1", VECTOR)], max_new_tokens=NEW, **settings)
    assert got == want
    assert got != m.generate(tiny.PROMPTS, max_new_tokens=NEW, **settings)


def test_positions_in_beam_search(m: Model) -> None:
    """A prompt's positions are the same in each of its beams."""
    edit = ak.add(SITE, VECTOR, where=ak.Where(tokens=-2))
    texts = m.generate(tiny.PROMPTS, [edit], max_new_tokens=NEW, num_beams=3)
    one_by_one = [m.generate(p, [edit], max_new_tokens=NEW, num_beams=3)[0] for p in tiny.PROMPTS]
    assert texts == one_by_one
    assert texts != m.generate(tiny.PROMPTS, max_new_tokens=NEW, num_beams=3)


def test_steps_start_anew_with_each_prompt(m: Model) -> None:
    inputs = {k: v for k, v in m.encode(tiny.PROMPTS).kwargs.items() if k != "position_ids"}
    for where in (
        ak.Where("generated"),
        ak.Where("prompt"),
        ak.Where(steps=1),
        ak.Where(tokens=-1),
    ):
        with m.edited([ak.add(SITE, VECTOR, where=where)]), torch.no_grad():
            first, second = (
                network(m).generate(**inputs, do_sample=False, max_new_tokens=NEW, pad_token_id=0)
                for _ in range(2)
            )
        assert torch.equal(first, second)
        texts = m.generate(tiny.PROMPTS, [ak.add(SITE, VECTOR, where=where)], max_new_tokens=NEW)
        assert [ids_of(t) for t in texts] == first[:, 7:].tolist()


def test_prompts_of_other_lengths_may_follow(m: Model) -> None:
    edit = ak.add(SITE, VECTOR, where=ak.Where(tokens=slice(-2, -1)))
    longer = ["w31 w32 w33 w34", "w1 w2 w3 w4 w5 w6 w7 w8 w9", "w5 w6"]
    found = []
    with m.edited([edit]):
        for prompts in (tiny.PROMPTS, longer, tiny.PROMPTS):
            found.append(m.generate(prompts, max_new_tokens=NEW))
    assert found[0] == found[2] == m.generate(tiny.PROMPTS, [edit], max_new_tokens=NEW)
    assert found[1] == m.generate(longer, [edit], max_new_tokens=NEW)


def test_a_cache_of_the_users_own(m: Model) -> None:
    from transformers import DynamicCache, StaticCache

    edits = [ak.add(SITE, VECTOR, where=ak.Where(tokens=slice(-2, None)))]
    want = m.generate(tiny.PROMPTS, edits, max_new_tokens=NEW)
    for cache in (DynamicCache(), StaticCache(network(m).config, max_cache_len=16)):
        assert m.generate(tiny.PROMPTS, edits, max_new_tokens=NEW, cache=cache) == want
        assert int(cache.get_seq_length()) == 7 + NEW - 1


def test_the_users_own_loop_with_a_cache(m: Model) -> None:
    ids_BT = torch.tensor([ids_of(tiny.PROMPTS[0])])
    out = None
    with m.edited([ak.add(SITE, VECTOR, where=ak.Where("generated"))]), torch.no_grad():
        for _ in range(NEW):
            step = ids_BT if out is None else ids_BT[:, -1:]
            past = cache_keywords(network(m), output_cache(out))
            out = network(m)(step, use_cache=True, **past)
            ids_BT = torch.cat([ids_BT, out.logits[:, -1:].argmax(-1)], 1)
    want, _ = naive(
        m, tiny.PROMPTS[0], lambda p, n: masked(lambda w: ak.add(SITE, VECTOR, where=w), p >= n)
    )
    assert ids_BT[0, 7:].tolist() == want


def test_calls_of_a_sampler_are_its_steps() -> None:
    """A network without tokens counts its calls, as a diffusion sampler's timesteps."""
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), tiny.uneven(2, 4)
    m, v = Model(net), tiny.uneven(4, seed=2)
    with torch.no_grad():
        want = x
        for i in range(4):
            want = torch.tanh(net[0](want) + (v if i in (1, 3) else 0))
        got = x
        with m.edited([ak.add("0:out", v, where=ak.Where(steps=[1, 3]))]):
            for _ in range(4):
                got = net(got)
        assert_close(got, want)
        with m.edited([ak.add("0:out", v, where=ak.Where("prompt"))]):
            got = net(net(x))
        assert_close(got, torch.tanh(net[0](torch.tanh(net[0](x) + v)) + v))


def test_sampling_is_the_users_seed(m: Model) -> None:
    edits = [ak.add(SITE, VECTOR, 0.1)]
    torch.manual_seed(3)
    first = m.generate(tiny.PROMPTS, edits, max_new_tokens=NEW, do_sample=True)
    torch.manual_seed(3)
    assert m.generate(tiny.PROMPTS, edits, max_new_tokens=NEW, do_sample=True) == first


def test_scores_may_be_asked_for(m: Model) -> None:
    texts = m.generate(tiny.PROMPTS, max_new_tokens=NEW, return_dict_in_generate=True)
    assert texts == m.generate(tiny.PROMPTS, max_new_tokens=NEW)


# ---- what is refused -----------------------------------------------------------------------


def test_what_generate_refuses(m: Model) -> None:
    with pytest.raises(InputError, match="context of 64 tokens, got 7 and 58"):
        m.generate(tiny.PROMPTS, max_new_tokens=58)
    with pytest.raises(InputError, match="a prompt must not be empty, got '' at index 1"):
        m.generate(["w1", ""])
    with pytest.raises(InputError, match="needs a language model with a tokenizer"):
        Model(m.module).generate([[1, 2, 3]])
    with pytest.raises(InputError, match="needs a language model with a tokenizer"):
        Model(nn.Linear(3, 2)).generate(torch.ones(1, 3))
    with pytest.raises(EditError, match="edits in generate need use_cache=True"):
        m.generate(tiny.PROMPTS, [ak.add(SITE, VECTOR)], use_cache=False)
    with tiny.untouched(m.module), pytest.raises(EditError, match="width 48, the add has width 3"):
        m.generate(tiny.PROMPTS, [ak.add(SITE, torch.ones(3))])
    with tiny.untouched(m.module), pytest.raises(EditError, match=r"shape \(3, 7\), got \(3, 5\)"):
        m.generate(tiny.PROMPTS, [ak.set(SITE, 0.0, ak.Where(tokens=torch.ones(3, 5).bool()))])
