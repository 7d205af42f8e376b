"""Shared sweeps against each version run alone: every decoder, every operation, ragged rows.

Shapes: V versions, B rows, D width.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.edits.edit import Edit
from actkit.core.errors import EditError
from actkit.core.sweep.base_run import BaseRun, shares
from actkit.core.sweep.blocks import block_paths
from actkit.core.sweep.sweep import most_rows
from actkit.model import Model
from tests.core import tiny
from tests.core.sites.architectures.parity import ROWS, close
from tests.core.sites.architectures.test_decoders import (
    ATTENTIVE,
    BLOCKS,
    EXPERTS,
    MAMBAS,
    NETWORKS,
    WIDTH,
    opened,
)

EVEN = [row + row[:3] for row in ([5, 17, 3, 88], [7, 7, 30, 2], [12, 90, 2, 55])]
WINDOWS = ("mistral", "gemma2", "gemma3")
"""Their cache forgets what is out of a window of 4 tokens."""


def total(logits: Tensor) -> Tensor:
    """Return a number in which every asked position and many words count."""
    weights = torch.linspace(-1, 2, logits.shape[-1], device=logits.device)
    scale = torch.arange(1, logits.shape[1] + 1, device=logits.device)[:, None]
    return (logits.float() * weights * scale).sum((1, 2))


def by_column(x: Tensor) -> Tensor:
    """Return something that depends on where a token stands among those that are computed."""
    return x * torch.arange(1, x.shape[1] + 1).view(1, -1, *[1] * (x.dim() - 2))


def versions(m: Model, prompts: Any, points: tuple[str, ...]) -> list[list[Edit]]:
    """Every operation at every point of the middle and the last block, at late and early tokens."""
    vector = tiny.uneven(WIDTH, seed=3)
    other = m.run([row[::-1] for row in prompts], record=[f"{p}.{b}" for p in points
                                                          for b in (1, BLOCKS - 1)])  # fmt: skip
    found: list[list[Edit]] = [[]]
    for block in (1, BLOCKS - 1):
        for i, point in enumerate(points):
            site, where = f"{point}.{block}", ak.Where(tokens=[2, -1][i % 2])
            found += [
                [ak.swap(site, other, where)],
                [ak.scale(site, 0.3, where)],
                [ak.clamp(site, -0.2, 0.2, where=ak.Where(tokens=slice(-2, None)))],
                [ak.set(site, 0.1, where)],
                [ak.apply(site, by_column, where)],
            ]
        site, last = f"resid_post.{block}", ak.Where(tokens="last")
        found += [
            [ak.add(site, vector, 2.0, last)],
            [ak.project_out(site, vector, last)],
            [ak.affine(site, 0.5 * torch.eye(WIDTH), vector, last)],
            [ak.clamp(site, -1.0, 1.0, direction=vector, where=last)],
            [ak.add(f"attn_out.{block}", vector), ak.scale("mlp_out.*", 0.5, last)],
            [ak.set(f"resid_pre.{block}", vector, ak.Where(tokens=1, rows=[0, 2]))],
        ]
    whole = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.bool)
    whole[:, -2] = True
    return [
        *found,
        [ak.scale("attn_probs.1", 0.0, ak.Where(tokens=-1, heads=2))],
        [ak.scale("embeddings", 1.5, ak.Where(tokens=-1))],
        [ak.scale("resid_mid.2" if "resid_mid" in points else "resid_pre.2", 0.2,
                  ak.Where(tokens=whole))],
        [ak.scale("final_norm" if m.sites("final_norm", refused=True)[0].refused == "" else
                  "resid_post.2", 0.5)],
        [ak.scale("logits", 0.5, ak.Where(tokens="last"))],
    ]  # fmt: skip


def alone(m: Model, prompts: Any, every: list[list[Edit]], at: Any) -> Tensor:
    """Run each version by itself, whole."""
    found = []
    starts = [max(map(len, prompts)) - len(row) for row in prompts]
    for edits in every:
        logits = m.run(prompts, edits=edits, logits=True).logits
        rows = [logits[b, s:][slice(-1, None) if at == "last" else at]
                for b, s in enumerate(starts)]  # fmt: skip
        found.append(total(torch.stack(rows)))
    return torch.stack(found)


@pytest.mark.parametrize(
    ("prompts", "at"), [(ROWS, slice(-3, None)), (EVEN, "last")], ids=["ragged", "even"]
)
@pytest.mark.parametrize("name", ATTENTIVE)
def test_a_shared_sweep_equals_each_version_alone(name: str, prompts: Any, at: Any) -> None:
    m = opened(name)
    has = {s.name.rpartition(".")[0] for s in m.sites()}
    points = ("resid_pre", "resid_mid", "z", "k", "v", "q", "mlp_out", "attn_out", "mlp_in")
    every = versions(m, prompts, tuple(p for p in points if p in has))
    with tiny.untouched(m.module):
        got_VB = m.sweep(prompts, every, total, at, batch=17)
    close(got_VB, alone(m, prompts, every, at), 2e-5)
    assert len({round(float(x), 2) for x in got_VB[:, 0]}) > len(every) // 2


@pytest.mark.parametrize("name", MAMBAS)
def test_networks_without_keys_run_whole_versions(name: str) -> None:
    m = opened(name)
    every = [[], [ak.scale("resid_post.1", 0.5, ak.Where(tokens=-1))], [ak.scale("resid_pre.2", 2)]]
    close(m.sweep(EVEN, every, total), alone(m, EVEN, every, "last"), 2e-5)


@pytest.mark.parametrize("name", [n for n in ATTENTIVE if n not in (*WINDOWS, *EXPERTS)])
def test_only_what_an_edit_reaches_is_computed(name: str) -> None:
    m = opened(name)
    paths, sizes = block_paths(m), []
    m.sweep(EVEN, [[], [ak.scale("resid_pre.1", 0.5)]], total)  # sharing is proven
    assert len(paths) == BLOCKS
    hooks = [
        m.module.get_submodule(path).register_forward_pre_hook(
            lambda _, args, kwargs, b=b: sizes.append(
                (b, *(args[0] if args else kwargs["hidden_states"]).shape[:2])
            ),
            with_kwargs=True,
        )
        for b, path in enumerate(paths)
    ]
    late = ak.Where(tokens=-2)
    sites = ("resid_pre.2", "attn_out.1", "resid_post.2")
    every = [[ak.scale(site, 0.5, late)] for site in sites]
    m.sweep(EVEN, every, total)
    for hook in hooks:
        hook.remove()
    assert sizes[BLOCKS:] == [(1, 3, 2), (2, 6, 2)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "pythia", "opt", "phi3", "mixtral"])
def test_gradients_pass_through_what_is_in_edits(name: str) -> None:
    m, vector = opened(name), tiny.uneven(WIDTH, seed=5)
    learnt = [vector.clone().requires_grad_(), vector.clone().requires_grad_()]
    every = [[ak.add("resid_post.1", v, where=ak.Where(tokens=-1))] for v in learnt]
    m.sweep(EVEN, every, total, grad=True).sum().backward()  # type: ignore[no-untyped-call]
    want = vector.clone().requires_grad_()
    run = m.run(EVEN, edits=[ak.add("resid_post.1", want, where=ak.Where(tokens=-1))],
                logits=True, grad=True)  # fmt: skip
    total(run.logits[:, -1:]).sum().backward()  # type: ignore[no-untyped-call]
    for v in learnt:
        assert v.grad is not None
        assert want.grad is not None
        close(v.grad, want.grad, 1e-4)
        assert v.grad.abs().max() > 0


def test_edits_that_change_nothing_do_not_begin_a_version() -> None:
    m = opened("llama")
    same = m.run(EVEN, record=["z.0", "resid_pre.1"])
    early = [ak.swap("z.0", same), ak.swap("resid_pre.1", same, ak.Where(tokens=1))]
    late = [ak.scale("resid_pre.2", 0.5, ak.Where(tokens=-1))]
    every = [early, early + late, late, [*late, *early], [ak.swap("z.0", same, ak.Where(tokens=0)),
             ak.scale("z.0", 0.5, ak.Where(tokens=4))]]  # fmt: skip
    got_VB = m.sweep(EVEN, every, total)
    close(got_VB, alone(m, EVEN, every, "last"), 2e-5)
    close(got_VB[1], got_VB[2])


def test_one_heads_values_for_every_token_share_too() -> None:
    m = opened("llama")
    own = tiny.uneven(3, 7, WIDTH // 6, seed=7)
    late = ak.Where(tokens=slice(4, None))
    every = [[ak.set("z.1.2", own, late)], [ak.add("z.2.5", own, where=late)],
             [ak.swap("z.1.3", m.run([r[::-1] for r in EVEN], record="z.1.3"), late)]]  # fmt: skip
    close(m.sweep(EVEN, every, total), alone(m, EVEN, every, "last"), 2e-5)


def test_several_copies_go_on_from_one_block_with_edits_of_all_rows() -> None:
    m = opened("llama")
    trunk = BaseRun(m, EVEN)
    got = trunk.resume([ak.scale("resid_pre.1", 0.5)], [1, 1], token=3)
    want = m.run(EVEN, edits=[ak.scale("resid_pre.1", 0.5, ak.Where(tokens=slice(3, None)))],
                 logits=True).logits  # fmt: skip
    assert want is not None
    close(got, want[:, -1:].repeat(2, 1, 1))
    close(trunk.logits, m.run(EVEN, logits=True).logits[:, -1:])


def test_which_networks_share() -> None:
    for name in NETWORKS:
        m = opened(name)
        batch = m.encode(EVEN)
        whole = shares(m, batch) and BaseRun(m, batch).whole
        assert whole == (name not in (*MAMBAS, *WINDOWS)), name
        if name in WINDOWS:
            short = m.encode([row[:3] for row in EVEN])
            assert BaseRun(m, short).whole, name


def test_a_budget_of_memory_sets_the_batch() -> None:
    m = tiny.model()
    base = m.encode(tiny.PROMPTS)
    small, large = (most_rows(m, base, size) for size in ("1MB", "100MB"))
    assert 3 <= small < large
    assert large / small == pytest.approx(100, rel=0.05)
    assert most_rows(m, base, 5) == 5
    with pytest.raises(EditError, match="batch must be a number of rows, 'auto', or memory"):
        most_rows(m, base, "a lot")
