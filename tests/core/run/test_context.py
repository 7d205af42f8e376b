"""What a pass is, prompt or written: told, proven or refused; against hooks written by hand.

Shapes: B batch, T tokens, D width, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import DynamicCache
from transformers import GenerationConfig as Config

import actkit as ak
from actkit.core.compat import cache_argument, cache_keywords, output_cache
from actkit.core.edits.controller import Controller
from actkit.core.errors import EditError
from actkit.core.run.told import told_by_generate
from actkit.model import Model
from tests.core import tiny
from tests.core.edits.test_controller import Watch

SITE, BLOCK = "resid_post.1", "model.layers.1"
VECTOR = 4 * tiny.uneven(tiny.WIDTH, seed=11)
GenerationConfig: Any = Config
IDS = [[int(w[1:]) for w in p.split()] for p in tiny.PROMPTS]
NEW = 5


@pytest.fixture(scope="module")
def m() -> Model:
    own = tiny.model()
    own.encode(tiny.PROMPTS)  # the side of padding is proven before hooks by hand stand
    return own


def network(m: Model) -> Any:
    return m.module


@contextmanager
def by_hand(m: Model, write: Callable[[Tensor, int], Tensor], path: str = BLOCK) -> Iterator[None]:
    """Let a hook of one's own write at a block's output; it gets x and the number of the pass."""
    passes: list[int] = []

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        passes.append(1)
        x = output[0] if isinstance(output, tuple) else output
        new = write(x, len(passes) - 1)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = m.module.get_submodule(path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def add(**where: Any) -> ak.Edit:
    return ak.add(SITE, VECTOR, where=ak.Where(**where))


def inputs(m: Model, prompts: Any = tiny.PROMPTS) -> dict[str, Tensor]:
    return {k: v for k, v in m.encode(prompts).kwargs.items() if k != "position_ids"}


def write(m: Model, edits: Sequence[ak.Edit], prompts: Any = tiny.PROMPTS, **settings: Any) -> Any:
    """Return what the network's own generate wrote inside `edited`."""
    settings = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0, **settings}
    with torch.no_grad(), m.edited(edits):
        return network(m).generate(**inputs(m, prompts), **settings)


# ---- several sequences for each prompt ------------------------------------------------------

ROWS: dict[str, tuple[Callable[[], ak.Edit], list[float]]] = {
    "a row": (lambda: ak.add(SITE, VECTOR, where=ak.Where(rows=1)), [0.0, 1.0, 0.0]),
    "rows": (lambda: ak.add(SITE, VECTOR, where=ak.Where(rows=[2, 0])), [1.0, 0.0, 1.0]),
    "strengths": (lambda: ak.add(SITE, VECTOR, torch.tensor([0.0, 0.5, -1.0])), [0.0, 0.5, -1.0]),
    "vectors": (
        lambda: ak.add(SITE, VECTOR * torch.tensor([[0.3], [0.0], [1.0]])),
        [0.3, 0.0, 1.0],
    ),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "num_return_sequences": 2},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
    ],
    ids=["sampled", "beams", "beams-returned"],
)
@pytest.mark.parametrize("way", ["generate", "edited"])
def test_rows_are_prompts_in_all_their_sequences(
    m: Model, name: str, settings: dict[str, Any], way: str
) -> None:
    make, strengths = ROWS[name]
    each = max(settings.get("num_beams", 1), settings.get("num_return_sequences", 1))
    factor = torch.tensor(strengths).repeat_interleave(each)[:, None, None]
    torch.manual_seed(5)
    with by_hand(m, lambda x, n: x + factor * VECTOR):
        want = write(m, [], **settings)
    torch.manual_seed(5)
    if way == "edited":
        assert torch.equal(write(m, [make()], **settings), want)
    else:
        texts = m.generate(tiny.PROMPTS, [make()], max_new_tokens=NEW, **settings)
        assert texts == m.tokenizer.batch_decode(want[:, 7:], skip_special_tokens=True)
    torch.manual_seed(5)
    assert not torch.equal(write(m, [], **settings), want)


def test_a_mask_of_the_prompt_holds_in_all_sequences(m: Model) -> None:
    mask_BT = torch.zeros(3, 7, dtype=torch.bool)
    mask_BT[0, 1] = mask_BT[1, 5] = mask_BT[2, 6] = True
    here = mask_BT.repeat_interleave(2, 0)[..., None]
    settings = {"do_sample": True, "num_return_sequences": 2}
    torch.manual_seed(3)
    with by_hand(m, lambda x, n: x + here * VECTOR if n == 0 else x):
        want = write(m, [], **settings)
    torch.manual_seed(3)
    assert torch.equal(write(m, [add(tokens=mask_BT)], **settings), want)


# ---- the prompt in pieces, several tokens at once -------------------------------------------


@pytest.mark.parametrize(
    "where",
    [
        {"tokens": "last"},
        {"tokens": "prompt"},
        {"tokens": "generated"},
        {"tokens": -1},
        {"tokens": -3},
        {"tokens": slice(-2, None)},
        {"tokens": 4},
        {"steps": 0},
        {"steps": [1, 3]},
        {"tokens": "last", "steps": slice(0, 2)},
    ],
    ids=str,
)
@pytest.mark.parametrize("piece", [2, 3, 6])
def test_a_prompt_in_pieces_is_one_prompt(m: Model, where: dict[str, Any], piece: int) -> None:
    edits = [add(**where)]
    whole = write(m, edits)
    assert torch.equal(write(m, edits, prefill_chunk_size=piece), whole)
    assert m.generate(
        tiny.PROMPTS, edits, max_new_tokens=NEW, prefill_chunk_size=piece
    ) == m.generate(tiny.PROMPTS, edits, max_new_tokens=NEW)


def test_a_mask_over_a_prompt_in_pieces(m: Model) -> None:
    mask_BT = torch.zeros(3, 7, dtype=torch.bool)
    mask_BT[0, 1] = mask_BT[1, 5] = mask_BT[2, 6] = True
    edits = [add(tokens=mask_BT)]
    assert torch.equal(write(m, edits, prefill_chunk_size=3), write(m, edits))


@pytest.mark.parametrize("where", [{"tokens": "last"}, {"tokens": -1}, {"tokens": "generated"},
                                   {"steps": 1}, {"tokens": 3}], ids=str)  # fmt: skip
def test_tokens_that_are_tried_and_taken_back_are_refused(m: Model, where: dict[str, Any]) -> None:
    one = tiny.PROMPTS[0]
    with pytest.raises(EditError, match="with prompt_lookup_num_tokens several tokens are tried"):
        write(m, [add(**where)], one, prompt_lookup_num_tokens=2)
    told = told_by_generate(m.module, (), {**inputs(m, one), "assistant_model": tiny.model()})
    assert told.reason.startswith("with assistant_model several tokens are tried")
    everywhere = write(m, [add()], one)
    assert torch.equal(write(m, [add()], one, prompt_lookup_num_tokens=2), everywhere)


@pytest.mark.parametrize("way", ["setting", "config given", "config of the network"])
def test_written_tokens_need_a_cache(way: str) -> None:
    own = tiny.model()
    settings: dict[str, Any] = {}
    if way == "setting":
        settings = {"use_cache": False}
    elif way == "config given":
        settings = {"generation_config": GenerationConfig(use_cache=False, max_new_tokens=3)}
    else:
        network(own).generation_config.use_cache = False
    for edits in ([add(tokens="generated")], [add()]):
        with pytest.raises(EditError, match="edits in generate need use_cache=True"):
            own.generate(tiny.PROMPTS, edits, **settings)
    assert own.generate(tiny.PROMPTS, max_new_tokens=3)


@pytest.mark.parametrize("where", [{"tokens": "generated"}, {"tokens": "prompt"}, {"tokens": -2},
                                   {"tokens": "last"}, {"steps": [0, 2]}], ids=str)  # fmt: skip
def test_what_was_written_is_known_without_a_cache_too(m: Model, where: dict[str, Any]) -> None:
    """Around the network's own generate, every pass reads all tokens; the prompt was told."""
    assert torch.equal(write(m, [add(**where)], use_cache=False), write(m, [add(**where)]))


# ---- caches ---------------------------------------------------------------------------------


class Evicting(DynamicCache):
    """Keeps the first token and the last three, as caches that evict do."""

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return what attention sees now; keep less of it."""
        keys, values = super().update(*args, **kwargs)
        layer = self.layers[args[2] if len(args) > 2 else kwargs["layer_idx"]]
        if keys.shape[2] > 4:
            layer.keys = torch.cat([keys[:, :, :1], keys[:, :, -3:]], 2)
            layer.values = torch.cat([values[:, :, :1], values[:, :, -3:]], 2)
        return keys, values


@pytest.mark.parametrize(
    ("where", "passes"),
    [
        ({"tokens": "generated"}, [1, 2, 3, 4]),
        ({"tokens": slice(9, None)}, [3, 4]),
        ({"steps": 2}, [2]),
        ({"tokens": "last", "steps": slice(1, None)}, [1, 2, 3, 4]),
    ],
    ids=str,
)
def test_positions_count_tokens_and_not_what_a_cache_holds(
    m: Model, where: dict[str, Any], passes: list[int]
) -> None:
    ids_BT = torch.tensor(IDS[:1])

    def written() -> list[int]:
        cache, found, step = Evicting(), [], ids_BT
        for n in range(NEW):
            at = torch.arange(ids_BT.shape[1] + n)[None, -step.shape[1] :]
            out = network(m)(step, **cache_keywords(network(m), cache), position_ids=at)
            step = out.logits[:, -1:].argmax(-1)
            found.append(int(step))
        return found

    with torch.no_grad(), by_hand(m, lambda x, n: x + VECTOR if n in passes else x):
        want = written()
    with torch.no_grad(), m.edited([add(**where)]):
        assert written() == want


def test_a_cache_that_was_cut_between_two_passes_is_not_counted_on(m: Model) -> None:
    ids_BT = torch.tensor(IDS[:1])

    def cut(edits: Any, **more: Any) -> Tensor:
        with torch.no_grad(), m.edited(edits):
            cache = DynamicCache(config=network(m).config)
            network(m)(ids_BT, **cache_keywords(network(m), cache))
            cache.crop(-2)
            logits: Tensor = network(m)(
                ids_BT[:, -2:-1], **cache_keywords(network(m), cache), **more
            ).logits
            return logits

    with pytest.raises(EditError, match="a cache was changed between two passes"):
        cut([add(tokens="generated")])
    with pytest.raises(EditError, match="a cache was changed between two passes"):
        cut([add(tokens=5)])
    assert_close(
        cut([add(tokens=5)], attention_mask=torch.ones(1, 6)),
        _alone(m, IDS[0][:6], lambda p: p == 5)[:, -1:],
    )
    cut([add()])


def test_a_cache_that_was_filled_elsewhere_is_told_or_refused(m: Model) -> None:
    ids_BT, cache = torch.tensor(IDS[:1]), DynamicCache(config=network(m).config)
    with torch.no_grad():
        network(m)(ids_BT[:, :4], **cache_keywords(network(m), cache))
    rest: dict[str, Any] = {"input_ids": ids_BT[:, 4:], "use_cache": True}
    rest[cache_argument(network(m)) or ""] = copy.deepcopy(cache)
    with pytest.raises(EditError, match="a cache among the arguments was filled elsewhere"):
        m.run(rest, edits=[add(tokens=5)], logits=True)
    rest[cache_argument(network(m)) or ""] = copy.deepcopy(cache)
    rec = m.run(rest, record=SITE)
    assert rec.rows_of(SITE).position.tolist() == [[-1, -1, -1]]
    rest[cache_argument(network(m)) or ""] = copy.deepcopy(cache)
    told = {**rest, "attention_mask": torch.ones(1, 7, dtype=torch.long)}
    rec = m.run(told, record=SITE, edits=[add(tokens=5)], logits=True)
    assert rec.rows_of(SITE).position.tolist() == [[4, 5, 6]]
    assert_close(rec.logits, _alone(m, IDS[0], lambda p: p == 5)[:, 4:])


def _alone(m: Model, ids: list[int], chosen: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the (1, T, V) logits of tokens that run at once, with the vector at some of them."""
    here = chosen(torch.arange(len(ids)))[None, :, None]
    with torch.no_grad(), by_hand(m, lambda x, n: x + here * VECTOR):
        logits: Tensor = network(m)(torch.tensor([ids])).logits
    return logits


@pytest.mark.parametrize("stop", [True, False])
def test_a_cache_of_the_users_own_is_whole_after_a_recording(m: Model, stop: bool) -> None:
    cache = DynamicCache(config=network(m).config)
    ids_BT = torch.tensor(IDS[:1])
    call = {"input_ids": ids_BT, **cache_keywords(network(m), cache), "use_cache": True}
    m.run(call, record="resid_post.0", logits=not stop)
    layers: list[Any] = list(cache.layers)
    assert [layer.keys.shape[2] for layer in layers] == [7] * len(layers)
    with torch.no_grad():
        got = network(m)(torch.tensor([[9]]), **cache_keywords(network(m), cache)).logits
        want = network(m)(torch.tensor([[*IDS[0], 9]])).logits[:, -1:]
    assert_close(got, want)


# ---- prompts one after the other ------------------------------------------------------------


def turns(m: Model, each: Callable[[int], Any]) -> list[Tensor]:
    """Return the logits of two turns of a chat on one cache, with two written tokens each."""
    cache, found = DynamicCache(config=network(m).config), []
    for turn in (IDS[0], IDS[2]):
        step = torch.tensor([turn])
        for _ in range(3):
            logits = network(m)(step, **cache_keywords(network(m), cache), use_cache=True).logits
            found.append(logits)
            step = logits[:, -1:].argmax(-1)
    return found


@pytest.mark.parametrize(
    ("where", "passes"),
    [
        ({"tokens": "prompt"}, [0, 3]),
        ({"tokens": "generated"}, [1, 2, 4, 5]),
        ({"steps": 0}, [0, 3]),
        ({"steps": 2}, [2, 5]),
    ],
    ids=str,
)
def test_a_second_turn_is_a_prompt(m: Model, where: dict[str, Any], passes: list[int]) -> None:
    with torch.no_grad(), by_hand(m, lambda x, n: x + VECTOR if n in passes else x):
        want = turns(m, lambda n: None)
    with torch.no_grad(), m.edited([add(**where)]):
        got = turns(m, lambda n: None)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_two_conversations_take_turns_in_one_context(m: Model) -> None:
    """What is written is known of each cache, whatever runs between."""

    def both() -> list[Tensor]:
        found, ways = [], [(torch.tensor([IDS[i]]), DynamicCache()) for i in (0, 1)]
        for _ in range(3):
            for i, (step, cache) in enumerate(ways):
                out = network(m)(step, **cache_keywords(network(m), cache))
                found.append(out.logits)
                ways[i] = (out.logits[:, -1:].argmax(-1), cache)
        return found

    with torch.no_grad(), by_hand(m, lambda x, n: x + VECTOR if n >= 2 else x):
        want = both()
    with torch.no_grad(), m.edited([add(tokens="generated")]):
        got = both()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_generate_twice_on_one_cache(m: Model) -> None:
    """The second call's prompt holds the first one's answer; its new part is prompt, too."""
    first = {"input_ids": torch.tensor(IDS[:1])}
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": 3, "pad_token_id": 0}

    def chat() -> Tensor:
        cache = DynamicCache(config=network(m).config)
        one = network(m).generate(**first, **cache_keywords(network(m), cache), **settings)
        more = torch.cat([one, torch.tensor(IDS[2:3])], 1)
        two: Tensor = network(m).generate(more, **cache_keywords(network(m), cache), **settings)
        return two

    with torch.no_grad(), by_hand(m, lambda x, n: x + VECTOR if n in (1, 2, 4, 5) else x):
        want = chat()
    with torch.no_grad(), m.edited([add(tokens="generated")]):
        assert torch.equal(chat(), want)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"num_return_sequences": 2}])
@pytest.mark.parametrize("tokens", ["prompt", "generated", "last"])
def test_a_prompt_of_embeddings(m: Model, settings: dict[str, int], tokens: str) -> None:
    """It is told as ids are: by `generate`, or by who feeds it."""
    ragged = inputs(m)
    given = {
        "inputs_embeds": network(m).get_input_embeddings()(ragged["input_ids"]).detach(),
        "attention_mask": ragged["attention_mask"],
    }
    more = {**settings, "do_sample": "num_return_sequences" in settings, "pad_token_id": 0}
    edit = add(tokens=tokens)

    def write(x: Tensor, n: int) -> Tensor:
        if n or tokens == "prompt":
            return x if (n > 0) == (tokens == "prompt") else x + VECTOR
        return torch.cat([x[:, :-1], x[:, -1:] + VECTOR * (tokens == "last")], 1)

    def written() -> Tensor:
        torch.manual_seed(3)
        out: Tensor = network(m).generate(**given, **more, max_new_tokens=NEW)
        return out

    with torch.no_grad(), by_hand(m, write):
        want = written()
    with torch.no_grad(), m.edited([edit]):
        assert torch.equal(written(), want)
    assert not torch.equal(want, written())

    def two_passes() -> Tensor:
        out = network(m)(**given, use_cache=True)
        longer = nn.functional.pad(given["attention_mask"], (0, 1), value=1)
        token = {"input_ids": torch.tensor([[5], [6], [7]]), "attention_mask": longer}
        past = cache_keywords(network(m), output_cache(out))
        return network(m)(**token, **past).logits  # type: ignore[no-any-return]

    with torch.no_grad(), by_hand(m, write):
        logits = two_passes()
    with torch.no_grad(), m.edited([edit], prompt=given):
        assert torch.equal(two_passes(), logits)


# ---- loops of the user's own ----------------------------------------------------------------


@pytest.mark.parametrize("called", ["call", "forward", "inner forward"])
def test_the_pass_is_seen_however_it_is_called(m: Model, called: str) -> None:
    ways = {
        "call": lambda **k: network(m).model(**k),
        "forward": lambda **k: network(m).model.forward(**k),
        "inner forward": lambda **k: network(m).forward(**k, output_hidden_states=True),
    }

    def states() -> list[Tensor]:
        found, cache, step = [], DynamicCache(config=network(m).config), torch.tensor(IDS[:1])
        for _ in range(3):
            out = ways[called](input_ids=step, **cache_keywords(network(m), cache))
            x = out.hidden_states[-1] if called == "inner forward" else out.last_hidden_state
            found.append(x)
            step = torch.tensor([[11]])
        return found

    with torch.no_grad(), by_hand(m, lambda x, n: x + VECTOR if n else x):
        want = states()
    with torch.no_grad(), m.edited([add(tokens="generated")]):
        got = states()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_loop_without_a_cache_is_told_or_refused(m: Model) -> None:
    def loop() -> list[int]:
        ids = list(IDS[0])
        for _ in range(NEW):
            ids.append(int(network(m)(torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[7:]

    want = write(m, [add(tokens="generated")], tiny.PROMPTS[:1])[0, 7:].tolist()
    for where in ({"tokens": "generated"}, {"tokens": "prompt"}, {"tokens": "last"}, {"steps": 0}):
        never = pytest.raises(EditError, match="a pass without a cache repeats the tokens")
        with never, torch.no_grad(), m.edited([add(**where)]):
            loop()
    with torch.no_grad(), m.edited([add(tokens="generated")], prompt=tiny.PROMPTS[:1]):
        assert loop() == want
    wheres: list[dict[str, Any]] = [{"tokens": "prompt"}, {"tokens": -2}, {"steps": [0, 2]}]
    for where in [*wheres, {"tokens": "last"}]:
        want = write(m, [add(**where)], tiny.PROMPTS[:1])[0, 7:].tolist()
        with torch.no_grad(), m.edited([add(**where)], prompt=[IDS[0]]):
            assert loop() == want


def test_a_prompt_that_is_told_may_come_in_pieces(m: Model) -> None:
    ids_BT = torch.tensor(IDS[:1])

    def loop() -> Tensor:
        cache = DynamicCache(config=network(m).config)
        for a, b in ((0, 1), (1, 5), (5, 7)):
            logits: Tensor = network(m)(ids_BT[:, a:b], **cache_keywords(network(m), cache)).logits
        return network(m)(logits[:, -1:].argmax(-1), **cache_keywords(network(m), cache)).logits  # type: ignore[no-any-return]

    with torch.no_grad(), by_hand(m, lambda x, n: x + VECTOR if n < 3 else x):
        want = loop()
    with torch.no_grad(), m.edited([add(tokens="prompt")], prompt=ids_BT):
        assert torch.equal(loop(), want)


def test_what_never_acted_is_an_error_whatever_its_where(m: Model) -> None:
    wheres: list[dict[str, Any]] = [
        {"tokens": "generated"},
        {"steps": 9},
        {"tokens": 40},
        {"rows": slice(5, None)},
        {"tokens": -1, "steps": 1},
    ]
    for where in wheres:
        with pytest.raises(EditError, match=r"the add at resid_post\.1 met nothing where"):
            write(m, [add(**where)], max_new_tokens=1)
    with pytest.raises(EditError, match="met nothing"):
        m.generate(tiny.PROMPTS, [add(tokens="generated")], max_new_tokens=1)


# ---- masks ----------------------------------------------------------------------------------


def test_documents_packed_into_one_row(m: Model) -> None:
    """A bool mask of two documents: all tokens are valid, positions begin with each."""
    lengths = (4, 3)
    order = torch.arange(7)
    apart = (order < lengths[0])[:, None] == (order < lengths[0])
    seen = (apart & (order <= order[:, None]))[None, None]
    at = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = {"input_ids": torch.tensor([IDS[0][:4] + IDS[1][:3]]), "attention_mask": seen}
    for call in ({**packed, "position_ids": at}, packed):
        rec = m.run(call, record=SITE, edits=[ak.set(SITE, 9.0, ak.Where(tokens=[0, 2]))])
        rows = rec.rows_of(SITE)
        assert rows.valid.all()
        assert rows.position.tolist() == at.tolist()
        assert (rec[SITE] == 9).all(-1)[0].nonzero()[:, 0].tolist() == [0, 2, 4, 6]


def test_a_window_is_no_document(m: Model) -> None:
    order = torch.arange(7)
    window = (order <= order[:, None]) & (order > order[:, None] - 3)
    call = {"input_ids": torch.tensor(IDS[:1]), "attention_mask": window[None, None]}
    rows = m.run(call, record=SITE).rows_of(SITE)
    assert rows.valid.all() and rows.position.tolist() == [list(range(7))]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_in_a_mask_of_pairs(m: Model, dtype: torch.dtype, side: str) -> None:
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[1, : 2 if side == "left" else None][-2 if side == "right" else 0 :] = False
    if side == "right":
        valid = torch.ones(2, 7, dtype=torch.bool)
        valid[1, 5:] = False
    pairs = torch.ones(7, 7).tril().bool()[None] & valid[:, None]
    pairs = pairs | torch.eye(7).bool() & ~valid[:, :, None] & (side == "nowhere")
    mask = pairs[:, None]
    given = mask if dtype == torch.bool else (~mask).float() * torch.finfo(dtype).min
    call = {"input_ids": torch.tensor([IDS[0], IDS[0]]), "attention_mask": given}
    rows = m.run(call, record=SITE).rows_of(SITE)
    assert torch.equal(rows.valid, valid)
    want = (valid.long().cumsum(-1) - 1).clamp_min(0)
    assert torch.equal(rows.position[valid], want[valid])


def test_a_mask_by_position() -> None:
    """A mask that is handed over without its name is a mask."""
    own = tiny.model()
    valid = torch.ones(2, 7, dtype=torch.long)
    valid[1, :3] = 0
    ids = torch.tensor([IDS[0], IDS[0]])
    with torch.no_grad(), own.edited([ak.set(SITE, 9.0, ak.Where(tokens=0))]):
        out = network(own).model(ids, valid, output_hidden_states=True)
    hit = (out.hidden_states[2] == 9).all(-1)
    assert hit.nonzero().tolist() == [[0, 0], [1, 3]]


# ---- controllers ----------------------------------------------------------------------------


def test_controllers_do_not_follow_beams(m: Model) -> None:
    watch: Controller = Watch(key="w")
    with pytest.raises(EditError, match=r"cannot follow beams.*Watch at resid_post\.1"):
        m.generate(tiny.PROMPTS, [ak.Edit(SITE, watch)], num_beams=2, max_new_tokens=3)
    m.generate(tiny.PROMPTS, [ak.Edit(SITE, watch)], max_new_tokens=3)


# ---- settings -------------------------------------------------------------------------------


def test_settings_of_generate_are_obeyed(m: Model) -> None:
    def count(**settings: Any) -> list[int]:
        return [len(t.split()) for t in m.generate(tiny.PROMPTS, **settings)]

    eos = network(m).generation_config.eos_token_id
    assert count(generation_config=GenerationConfig(max_new_tokens=3, eos_token_id=eos)) == [3] * 3
    assert count(max_length=10) == [3] * 3
    assert count(max_new_tokens=4) == [4] * 3
    assert count(generation_config=GenerationConfig(max_length=9)) == [2] * 3
    assert max(count()) == 40
    sampled = GenerationConfig(max_new_tokens=4, do_sample=True, temperature=3.0)
    torch.manual_seed(0)
    one = m.generate(tiny.PROMPTS, generation_config=sampled)
    assert one != m.generate(tiny.PROMPTS, max_new_tokens=4)


def test_the_names_of_caches_are_asked_of_the_network(m: Model) -> None:
    assert cache_argument(m.module) in ("cache", "past_key_values")
    with torch.no_grad():
        out = network(m)(torch.tensor(IDS[:1]), use_cache=True)
    assert output_cache(out).get_seq_length() == 7
