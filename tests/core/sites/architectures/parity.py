"""What every architecture's table must hold; each check raises where the table is wrong.

A check takes an opened model with random weights (`randomised`) and inputs as `Model.run` takes
them. Networks of transformers only: the reference is what they return themselves.

Shapes: B batch, T tokens, H heads, S keys, D width.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import actkit as ak
from actkit.core.edits.edit import Edit
from actkit.core.run.recording import Recording
from actkit.core.sites.site import WHOLE
from actkit.model import Model
from tests.core.tiny import untouched

ROWS = [[5, 17, 3, 88, 42, 9, 61], [7, 7, 30], [12, 90, 2, 55, 71]]
"""Token ids of three prompts of 7, 3 and 5 tokens; a network must know at least 91 tokens."""

Net = TypeVar("Net", bound=nn.Module)


def randomised(module: Net, seed: int = 0, std: float = 0.3) -> Net:
    """Fill every parameter with normal noise, so that no bias is zero and no gain is one."""
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(std=std, generator=gen)
    return module.eval()


def eager(module: nn.Module) -> nn.Module:
    """Return a copy with the same weights that is configured for eager attention."""
    twin: nn.Module = copy.deepcopy(module)
    for each in twin.modules():
        # not the whole alone: T5's stacks have configurations of their own, which some versions
        # of transformers leave as they are
        if isinstance(each, PreTrainedModel):
            each.set_attn_implementation("eager")
    return twin


def close(got: Tensor, wanted: Tensor, tol: float = 1e-5) -> None:
    """Hold that two tensors agree to `tol` of the largest number among them."""
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    error = (got - wanted).abs().max().item()
    assert error <= tol * max(1.0, wanted.abs().max().item()), error


def points(m: Model, point: str, stack: str = "") -> list[str]:
    """Return a point's sites in one stack, one for each block that has it."""
    name = f"{stack}.{point}" if stack else point
    return [s.name for s in m.sites() if s.name == name or s.name.rpartition(".")[0] == name]


def reference(module: nn.Module, m: Model, inputs: Any, **settings: Any) -> Any:
    """Call a network itself, without the instrument, on what `m` makes of the inputs."""
    batch = m.encode(inputs)
    with torch.no_grad():
        return module(*batch.args, **batch.kwargs, **settings)


def whole_run(m: Model, inputs: Any, edits: Sequence[Edit] = ()) -> tuple[Recording, Any]:
    """Record every site that the model lists; return also what the network returned."""
    kept: dict[str, Any] = {}
    handle = m.module.register_forward_hook(lambda *a: kept.update(output=a[2]))
    try:
        rec = m.run(inputs, record=[*(s.name for s in m.sites()), ":out"], edits=edits)
    finally:
        handle.remove()
    return rec, kept["output"]


def tensors(output: Any) -> list[Tensor]:
    """Return all tensors of what a network returned; caches are left out."""
    if isinstance(output, Tensor):
        return [output]
    items = output.values() if isinstance(output, Mapping) else output
    return [t for i in items if isinstance(i, Tensor | tuple | list | Mapping) for t in tensors(i)]


def check_sites(m: Model, inputs: Any) -> Recording:
    """Hold that every listed site fires with its stated shape and that no output bit changes."""
    with untouched(m.module):
        rec, output = whole_run(m, inputs)
    wanted = tensors(reference(m.module, m, inputs))
    got = tensors(output)
    assert wanted and len(got) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    for site in m.sites():
        assert site.shape is not None, site
        found = rec[site.name].shape
        assert len(found) == len(site.shape), (site, found)
        pairs = zip(found, site.shape, strict=True)
        assert all(n == m for n, m in pairs if isinstance(m, int)), (site, found)
        assert rec[site.name].isfinite().all(), site
    return rec


def check_hidden_states(
    m: Model, inputs: Any, stack: str = "", field: str = "hidden_states", normed: bool = True
) -> None:
    """Hold that the residual stream is what the network calls its hidden states.

    Args:
        m: The opened model.
        inputs: As `Model.run` takes them.
        stack: The stack's prefix.
        field: Where the network's output keeps the stack's hidden states.
        normed: The last hidden state is the final norm's output, not the last block's.
    """
    rec, _ = whole_run(m, inputs)
    states = reference(m.module, m, inputs, output_hidden_states=True)[field]
    pre, post = points(m, "resid_pre", stack), points(m, "resid_post", stack)
    assert len(pre) == len(post) == len(states) - 1
    for i, name in enumerate(pre):
        close(rec[name], states[i])
        if i:
            assert torch.equal(rec[name], rec[post[i - 1]])
    last = points(m, "final_norm", stack)[0] if normed else post[-1]
    close(rec[last], states[-1])


def check_attentions(
    m: Model, inputs: Any, stack: str = "", field: str = "attentions", tol: float = 1e-5
) -> None:
    """Hold that `attn_probs` are the attentions of an eager twin, and the scores' softmax."""
    twin = eager(m.module)
    wanted = reference(twin, m, inputs, output_attentions=True)[field]
    for model in (m, Model(twin)):
        rec = model.run(inputs, record=[f"{stack}.attn_*.*".lstrip(".")])
        names = points(m, "attn_probs", stack)
        assert len(names) == len(wanted)
        for name, probs in zip(names, wanted, strict=True):
            valid = rec.rows_of(name).valid
            close(rec[name].transpose(1, 2)[valid], probs.transpose(1, 2)[valid], tol)
            scores = rec[name.replace("attn_probs", "attn_scores")]
            assert scores.dtype == torch.float32
            close(scores.softmax(-1), rec[name])


def check_sums(m: Model, inputs: Any, stack: str = "", mid: bool = True) -> None:
    """Hold that what attention and MLP add up to is the residual stream."""
    rec, _ = whole_run(m, inputs)
    names = [points(m, p, stack) for p in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
    assert len({len(n) for n in names}) == 1 and names[0]
    for pre, attn, mlp, post in zip(*names, strict=True):
        close(rec[pre] + rec[attn] + rec[mlp], rec[post])
        if mid:
            close(rec[pre] + rec[attn], rec[pre.replace("resid_pre", "resid_mid")])


def check_maps(m: Model, inputs: Any, point: str, maps: Mapping[str, nn.Module | str]) -> None:
    """Hold that a point, put through a module, gives another site.

    Args:
        m: The opened model.
        inputs: As `Model.run` takes them.
        point: For example "z".
        maps: For each block the site that must come out, and the module to put the point through
            (or its path).
    """
    names = [f"{point}.{i}" for i in range(len(maps))]
    rec = m.run(inputs, record=[*names, *maps])
    for name, (site, module) in zip(names, maps.items(), strict=True):
        fn = m.module.get_submodule(module) if isinstance(module, str) else module
        x = rec[name]
        with torch.no_grad():
            out = fn(x.flatten(2) if x.dim() == 4 else x)
        close(out.reshape(rec[site].shape), rec[site])


def check_edits(m: Model, inputs: Any, tol: float = 1e-5) -> None:
    """Hold that putting back what was there changes nothing, at each site and at all together.

    On padding that sees no key kernels differ, so only valid tokens are compared.
    """
    wanted = tensors(reference(m.module, m, inputs))
    names = [s.name for s in m.sites()]
    chosen = [[n] for n in names if n.endswith(".1") or n.rpartition(".")[2] in WHOLE]
    with untouched(m.module):
        for group in [*chosen, names]:
            edits = [ak.apply(name, lambda x: x.clone()) for name in group]
            rec = m.run(inputs, edits=edits)
            valid = rec.rows.valid
            for got, want in zip(tensors(rec.output), wanted, strict=True):
                rows = valid if got.shape[:2] == valid.shape else ...
                close(got[rows], want[rows], tol)


def check_gradients(m: Model, inputs: Any, step: float = 1e-3) -> None:
    """Hold that gradients at recorded sites are what small edits there do to the output.

    All sites of one block and those of the whole are checked. The network must be in float64, of
    which many norms keep only float32, hence the large step; kinks need a smaller one.
    """
    chosen = [s.name for s in m.sites()]
    chosen = [n for n in chosen if n.endswith(".1") or n.rpartition(".")[2] in WHOLE]
    for name in chosen:
        gen = torch.Generator().manual_seed(len(name))
        rec = m.run(inputs, record=name, logits=True, grad=True)
        target = torch.randn(rec.logits.shape, generator=gen, dtype=torch.float64)
        (grad,) = torch.autograd.grad((rec.logits * target).sum(), rec[name])
        # what lies on heads and keys is edited rows first
        turn = "S" in m.sites(name)[0].axes
        rows = grad.transpose(1, 2) if turn else grad
        way = torch.randn(rows.shape, generator=gen, dtype=torch.float64)
        ends = [
            m.run(inputs, record="logits", edits=[ak.apply(name, partial(_nudged, h * way))])
            for h in (step, -step)
        ]
        slope = ((ends[0]["logits"] - ends[1]["logits"]) * target).sum() / (2 * step)
        close((rows * way).sum()[None], slope[None], 5e-3)


def _nudged(step: Tensor, x: Tensor) -> Tensor:
    return x + step.to(x.dtype)


def check_moves(m: Model, inputs: Any, names: Sequence[str] = ()) -> None:
    """Hold that an edit at every site but the last few moves the network's output."""
    wanted = tensors(reference(m.module, m, inputs))[0]
    for name in names or [s.name for s in m.sites() if s.name.endswith(".1")]:
        got = tensors(m.run(inputs, edits=[ak.apply(name, lambda x: 0.5 * x + 0.7)]).output)[0]
        assert (got - wanted).abs().max() > 1e-4, name


def check_stream(m: Model, inputs: Any, block: int = 1, stack: str = "") -> None:
    """Hold that a vector added at `resid_mid` is one that attention had added."""
    prefix = f"{stack}." if stack else ""
    mid, attn, post = (f"{prefix}{p}.{block}" for p in ("resid_mid", "attn_out", "resid_post"))
    width = m.sites(mid)[0].shape
    assert width is not None and isinstance(width[-1], int)
    vector = torch.linspace(-1.0, 2.0, width[-1])
    plain, moved, brute = (
        m.run(inputs, record=[post], edits=edits)[post]
        for edits in ([], [ak.add(mid, vector)], [ak.add(attn, vector)])
    )
    assert (moved - plain).abs().max() > 0.1
    close(moved, brute)


def check_padding(m: Model, rows: Sequence[Sequence[int]] = ROWS, tol: float = 1e-4) -> None:
    """Hold that left-padded, right-padded and single prompts have the same rows."""
    names = [s.name for s in m.sites()]
    length = max(map(len, rows))
    ids = torch.tensor([[*r, *[1] * (length - len(r))] for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (length - len(r)) for r in rows])
    left = m.run([list(r) for r in rows], record=names)
    right = m.run({"input_ids": ids, "attention_mask": mask}, record=names)
    for b, row in enumerate(rows):
        single = m.run([list(row)], record=names)
        for site in m.sites():
            wanted = single[site.name][0]
            for rec in (left, right):
                valid = rec.rows.valid[b]
                assert rec.rows.token[b][valid].tolist() == list(row)
                x = rec[site.name][b]
                x = x[:, valid][..., valid] if "S" in site.axes else x[valid]
                close(x, wanted, tol)


class Broken(Exception):  # noqa: N818
    """Raised on purpose."""


def check_cleanup(m: Model, inputs: Any, inside: str) -> None:
    """Hold that errors in the model and in an edit leave nothing behind.

    Args:
        m: The opened model.
        inputs: As `Model.run` takes them.
        inside: Path of a module that runs late, where the model is made to fail.
    """

    def fail(*_: Any) -> Any:
        raise Broken

    names = [s.name for s in m.sites()]
    keep = [ak.apply(n, lambda x: x.clone()) for n in names]
    with untouched(m.module):
        with broken(m.module.get_submodule(inside), fail), pytest.raises(Broken):
            m.run(inputs, record=names, edits=keep)
        for name in (n for n in names if n.endswith(".1")):
            with pytest.raises(Broken):
                m.run(inputs, record=names, edits=[*keep, ak.apply(name, fail)])


@contextmanager
def broken(module: nn.Module, fail: Callable[..., Any]) -> Iterator[None]:
    """Let a module fail."""
    handle = module.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()
