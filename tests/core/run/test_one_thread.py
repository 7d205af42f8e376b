"""Edits and recordings belong to the thread or task that made them; copies are clean."""

import asyncio
import copy
import io
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import EditError
from actkit.model import Model
from tests.core import tiny

SITE = "resid_post.1"
VECTOR = 4 * tiny.uneven(tiny.WIDTH, seed=11)
EDITS = [ak.add(SITE, VECTOR), ak.scale("attn_probs.1", 0.5), ak.scale("resid_mid.0", 0.9)]


@pytest.fixture
def m() -> Model:
    own = tiny.model()
    own.encode(tiny.PROMPTS)
    return own


def logits(net: Any, m: Model) -> Tensor:
    with torch.no_grad():
        found: Tensor = net(**m.encode(tiny.PROMPTS).kwargs).logits
    return found


def beside(work: Callable[[], Any]) -> Any:
    """Return what another thread makes of some work."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_another_thread_sees_no_edits(m: Model) -> None:
    plain, texts = logits(m.module, m), m.generate(tiny.PROMPTS, max_new_tokens=4)
    with tiny.untouched(m.module):
        with m.edited(EDITS):
            edited = logits(m.module, m)
            assert torch.equal(beside(lambda: logits(m.module, m)), plain)
            assert beside(lambda: m.generate(tiny.PROMPTS, max_new_tokens=4)) == texts
            rec = beside(lambda: m.run(tiny.PROMPTS, [SITE, "attn_probs.1"], logits=True))
            assert torch.equal(rec.logits, plain)
            assert torch.equal(logits(m.module, m), edited)
        assert not torch.equal(edited, plain)
        want = m.run(tiny.PROMPTS, [SITE, "attn_probs.1"])
    assert all(torch.equal(rec[site], want[site]) for site in want)


def test_two_threads_with_edits_of_their_own_at_once(m: Model) -> None:
    """Both are inside at the same time, and leave in the order in which they came."""
    ways = [[ak.add(SITE, VECTOR), ak.scale("attn_probs.1", 0.3)], [ak.scale("attn_probs.1", 2.0)]]
    want = [m.run(tiny.PROMPTS, edits=edits, logits=True).logits for edits in ways]
    barrier, found = threading.Barrier(2), {}

    def work(i: int) -> None:
        with m.edited(ways[i]):
            barrier.wait()
            found[i] = [logits(m.module, m) for _ in range(20)]
            barrier.wait()
        found[i].append(logits(m.module, m))

    with tiny.untouched(m.module):
        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    plain = logits(m.module, m)
    for i in range(2):
        own = want[i]
        assert own is not None
        assert all(torch.equal(x, own) for x in found[i][:-1])
        assert torch.equal(found[i][-1], plain)


def test_a_sweep_does_not_meet_a_plain_run_beside_it(m: Model) -> None:
    """Blocks are left out of a shared sweep, and of no run of another thread."""
    versions = [[], [ak.scale("resid_pre.2", 0.5)], [ak.scale("resid_pre.1", 0.5)]]

    def gap(x: Tensor) -> Tensor:
        return x[:, -1, 5] - x[:, -1, 7]

    want, plain = m.sweep(tiny.PROMPTS, versions, gap), logits(m.module, m)
    stop, wrong = threading.Event(), []

    def plainly() -> None:
        while not stop.is_set():
            wrong.append(not torch.equal(logits(m.module, m), plain))

    thread = threading.Thread(target=plainly)
    thread.start()
    swept = [m.sweep(tiny.PROMPTS, versions, gap) for _ in range(5)]
    stop.set()
    thread.join()
    assert wrong and not any(wrong)
    assert all(torch.equal(s, want) for s in swept)


def test_edits_that_only_another_thread_would_meet_are_an_error(m: Model) -> None:
    with pytest.raises(EditError, match="never ran: it ran in another thread"), m.edited(EDITS):
        beside(lambda: logits(m.module, m))


def test_a_task_sees_no_edits_of_another(m: Model) -> None:
    plain = logits(m.module, m)

    async def edited() -> Tensor:
        with m.edited(EDITS):
            await asyncio.sleep(0.01)
            found = logits(m.module, m)
            await asyncio.sleep(0.02)
        return found

    async def bare() -> list[Tensor]:
        found = []
        for _ in range(6):
            found.append(logits(m.module, m))
            await asyncio.sleep(0.005)
        return found

    async def both() -> tuple[Tensor, list[Tensor]]:
        return await asyncio.gather(edited(), bare())

    steered, others = asyncio.run(both())
    assert not torch.equal(steered, plain)
    assert all(torch.equal(x, plain) for x in others)


def test_a_task_that_begins_inside_is_inside(m: Model) -> None:
    async def inner() -> Tensor:
        return logits(m.module, m)

    async def outer() -> tuple[Tensor, Tensor]:
        with m.edited(EDITS):
            return await asyncio.create_task(inner()), logits(m.module, m)

    one, two = asyncio.run(outer())
    assert torch.equal(one, two)


# ---- copies ---------------------------------------------------------------------------------


def reopened(net: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, reopened])
def test_a_copy_made_inside_is_clean(m: Model, copied: Callable[[nn.Module], Any]) -> None:
    """Whatever makes it: `deepcopy`, or a file of the whole module."""
    plain, before = logits(m.module, m), tiny.state(m.module)
    with m.edited(EDITS):
        edited = logits(m.module, m)
        twin = copied(m.module)
        assert torch.equal(logits(twin, m), plain)
        assert torch.equal(logits(m.module, m), edited)
    assert torch.equal(logits(twin, m), plain)
    hooks = [v[0] for v in before.values() if isinstance(v, tuple) and isinstance(v[0], list)]
    own = tiny.state(twin).values()
    assert [v[0] for v in own if isinstance(v, tuple) and isinstance(v[0], list)] == hooks
    for path, module in twin.named_modules():
        assert vars(module).keys() == vars(m.module.get_submodule(path)).keys()
    texts: Any = twin.generate
    with torch.no_grad():
        inputs = m.encode(tiny.PROMPTS).kwargs
        out = texts(**{k: v for k, v in inputs.items() if k != "position_ids"}, max_new_tokens=2,
                    do_sample=False, pad_token_id=0)  # fmt: skip
    assert out.shape == (3, 9)


def test_a_copy_of_a_part_is_clean(m: Model) -> None:
    block: Any = m.module.get_submodule("model.layers.1")
    x, where = tiny.uneven(1, 4, tiny.WIDTH), torch.arange(4)[None]
    turn = m.module.get_submodule("model.rotary_emb")(x, where)
    with torch.no_grad():
        want = block(x, position_embeddings=turn)
        with m.edited(EDITS):
            logits(m.module, m)
            twin = copy.deepcopy(block)
        assert torch.equal(twin(x, position_embeddings=turn), want)
    assert not twin._forward_hooks and not twin._forward_pre_hooks


def test_a_copy_with_hooks_of_the_users_own_keeps_those() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    m, x, calls = Model(net), tiny.uneven(2, 3), []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    with m.edited([ak.scale("0:out", 2.0)]):
        net(x)
        twin = copy.deepcopy(net)
    twin(x)
    assert len(calls) == 2
    assert torch.equal(twin(x), net(x))
