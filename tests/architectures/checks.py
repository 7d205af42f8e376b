"""What must hold of every type: each check is a cell of the page.

A check compares what actkit gives with plain transformers or with hooks written by hand here, and
says "holds", "refused" (a typed error, its words) or "wrong". Where the type itself cannot do what
is compared, it says "none" with the reason.

Shapes: B batch, T tokens, H heads, S keys, D width.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import ActkitError, SiteError
from actkit.core.sites.site import Site
from actkit.model import Model
from tests.architectures.build import Built
from tests.architectures.feed import even
from tests.architectures.inputs import ROWS, TARGETS
from tests.architectures.tweaks import ADDED_TO_NORMED, SINKS_APART
from tests.core.sites.architectures.parity import tensors
from tests.core.tiny import state, tokenizer

NEW = 4
"""Tokens to write."""


@dataclass
class Cell:
    """One result.

    Attributes:
        status: "holds", "refused", "wrong" or "none".
        words: The reason, one line.
    """

    status: str
    words: str = ""


class Wrong(Exception):  # noqa: N818
    """Numbers that differ."""


class Nothing(Exception):  # noqa: N818
    """The type cannot do what the check is about."""


def close(got: Tensor, wanted: Tensor, what: str, tol: float = 1e-4) -> None:
    """Hold that tensors agree to `tol` of the largest number among them."""
    if got.shape != wanted.shape:
        raise Wrong(f"{what}: shape {tuple(got.shape)}, not {tuple(wanted.shape)}")
    if not wanted.numel():
        return
    error = (got.double() - wanted.double()).abs().max().item()
    size = max(1.0, wanted.abs().max().item())
    if not error <= tol * size:
        raise Wrong(f"{what}: off by {error:.2g}, largest value {size:.2g}")


def same(got: Any, wanted: Any, what: str) -> None:
    """Hold that all tensors of two outputs have the same bits."""
    ours, own = tensors(got), tensors(wanted)
    if len(ours) != len(own):
        raise Wrong(f"{what}: {len(ours)} tensors, not {len(own)}")
    for i, (a, b) in enumerate(zip(ours, own, strict=True)):
        if a.shape != b.shape or not torch.equal(a, b):
            off = (a.double() - b.double()).abs().max().item() if a.shape == b.shape else "shape"
            raise Wrong(f"{what}: output {i} is off by {off}")


@dataclass
class Case:
    """One type under test.

    Attributes:
        built: The network and what it does.
        feed: Arguments of one call.
        m: The opened model.
        cells: Results by check.
        calls: How often each module runs in one pass, by path; known once `ran` is.
    """

    built: Built
    feed: dict[str, Any]
    m: Model
    cells: dict[str, Cell] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)

    @property
    def network(self) -> Any:
        """Return the network."""
        return self.built.network

    @cached_property
    def plain(self) -> Any:
        """Return what the network returns by itself."""
        return self.call()

    def call(self, **settings: Any) -> Any:
        """Call the network without the instrument."""
        with torch.no_grad():
            return self.network(**self.feed, **settings)

    @cached_property
    def ran(self) -> dict[str, Any]:
        """Return what the modules that run return in their first call, by path."""
        found: dict[str, Any] = {}
        handles = []
        for path, module in self.network.named_modules():

            def keep(_: Any, __: Any, output: Any, path: str = path) -> None:
                found.setdefault(path, output)
                self.calls[path] += 1

            handles.append(module.register_forward_hook(keep))
        try:
            self.call()
        finally:
            for handle in handles:
                handle.remove()
        return found

    @cached_property
    def names(self) -> list[str]:
        """Return all sites that this feed reaches: points, or modules that return a tensor."""
        if self.has_points:
            return [s.name for s in self.m.sites() if s.place.path in self.ran]
        paths = [p for p, y in self.ran.items() if p and _main(y) is not None]
        paths = [p for p in paths if ".parametrizations." not in p]  # they make weights
        return [site for p in paths if self._is_readable(p) for site in self.sites_of(p)]

    def sites_of(self, path: str) -> list[str]:
        """Return what a module returns, in each of its calls."""
        number = self.calls[path]
        return [f"{path}:out{f'#{i}' if number > 1 else ''}" for i in range(number)]

    def _is_readable(self, path: str) -> bool:
        """Say whether a module's tensor has rows; scores may not where tokens stand first."""
        shape = _main(self.ran[path]).shape
        turned = self.m.sites(f"{path}:out")[0].place.layout.tokens_first
        return not turned or (len(shape) > 2 and shape[1] == 2)

    @property
    def has_points(self) -> bool:
        """Say whether the network has points."""
        return any(s.stack is not None for s in self.m.sites())

    @cached_property
    def text(self) -> bool:
        """Say whether the network reads token ids, and nothing else."""
        ids = {"input_ids", "decoder_input_ids"}
        one_each = all(x.dim() == 2 for x in self.feed.values())  # Dia reads several codes a step
        return "input_ids" in self.feed and set(self.feed) <= ids and one_each

    @cached_property
    def middle(self) -> Site:
        """Return the site of the edits: the stream after a middle block."""
        posts = [n for n in self.names if n.rpartition(".")[0].split(".")[-1] == "resid_post"]
        main = [n for n in posts if n.startswith("resid_post")]
        main = main or [n for n in posts if n.startswith("decoder.")] or posts
        if main:
            return self.m.sites(main[len(main) // 2 - (len(main) % 2 == 0)])[0]
        lists = {p: m for p, m in self.network.named_modules() if isinstance(m, nn.ModuleList)}
        blocks = [
            f"{p}.{i}"
            for p, m in sorted(lists.items(), key=lambda x: -len(x[1]))
            for i in range(len(m))
            if isinstance(_main(self.ran.get(f"{p}.{i}")), Tensor)
        ]
        others = [p for p, y in self.ran.items() if p and _main(y) is not None]
        blocks = self._editable(blocks) or self._editable(others)
        if not blocks:
            raise Nothing("no module returns a tensor that an edit could be made of")
        return self.m.sites(f"{blocks[len(blocks) // 2]}:out")[0]

    def _editable(self, paths: Sequence[str]) -> list[str]:
        """Return modules of which a vector can be added to what they return."""
        axes = (3,) if self.text else (2, 3, 4)
        return [p for p in paths if _main(self.ran[p]).dim() in axes]

    @property
    def stream_like(self) -> Tensor:
        """Return what the network has at the middle."""
        had: Tensor = _main(self.ran[self.middle.place.path])
        return had

    def vector(self, scale: float = 1.0, requires_grad: bool = False) -> Tensor:
        """Return an uneven vector for the middle."""
        x = self.stream_like
        units_first = self.middle.stack is None or self.middle.place.layout.channels_first
        images = x.dim() == 4 and units_first and not x.shape[1] == x.shape[2] != x.shape[3]
        tokens = self.feed["input_ids"].shape[1] if self.text else 0
        turned = x.dim() == 3 and x.shape[1] != tokens == x.shape[2]  # SqueezeBERT: (B, D, T)
        width = x.shape[1] if images or turned else x.shape[-1]
        size = x.float().std().item() or 1.0
        v = scale * size * torch.linspace(-1.0, 2.0, width).sin()
        return v.to(x.dtype).requires_grad_(requires_grad)


def _main(output: Any) -> Any:
    """Return the tensor that a module's output is first of all; None if there is none."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, tuple | list) and output:
        return _main(output[0])
    if isinstance(output, Mapping):
        return next((v for v in output.values() if isinstance(v, Tensor)), None)
    return None


def _with_main(output: Any, new: Tensor) -> Any:
    if isinstance(output, Tensor):
        return new
    if isinstance(output, tuple | list):
        items = [_with_main(output[0], new), *output[1:]]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    changed = copy.copy(output)
    key = next(k for k, v in output.items() if isinstance(v, Tensor))
    changed[key] = new
    return changed


@contextmanager
def by_hand(
    network: nn.Module, site: Site, change: Callable[[Tensor, int], Tensor]
) -> Iterator[None]:
    """Change what a module returns, by a hook of our own; `change` gets the number of the pass."""
    calls, passes, shared = [0], [-1], site.place.call  # ALBERT's blocks are one module
    number = 1 if shared is None or site.stack is None else site.stack.num_blocks

    def begin(*_: Any) -> None:
        passes[0] += 1

    def hook(_: Any, __: Any, output: Any) -> Any:
        call, turn = divmod(calls[0], number)
        calls[0] += 1
        call = passes[0] if passes[0] >= 0 else call  # BLIP's generate calls a part of it alone
        if shared is not None and turn != shared:
            return None
        x = _main(output)
        if site.place.layout.tokens_first:  # right only if it is so: T is never B here
            return _with_main(output, change(x.transpose(0, 1), call).transpose(0, 1))
        return _with_main(output, change(x, call))

    handle = network.get_submodule(site.place.path).register_forward_hook(hook)
    door = network.register_forward_pre_hook(begin)
    try:
        yield
    finally:
        handle.remove()
        door.remove()


def added(v: Tensor, tokens: Sequence[int] | None = None) -> Callable[[Tensor, int], Tensor]:
    """Return a change that adds a vector, at some tokens or at all."""

    def change(x: Tensor, _: int) -> Tensor:
        own = v[:, None, None] if x.dim() == 4 and v.shape[0] == x.shape[1] else v
        if x.dim() == 3 and x.shape[1] == len(v) != x.shape[2]:  # (B, D, T)
            return change(x.transpose(1, 2), 0).transpose(1, 2)
        if tokens is None:
            return x + own
        x = x.clone()
        x[:, list(tokens)] = x[:, list(tokens)] + own
        return x

    return change


# -- the checks -----------------------------------------------------------------------------------


def bits(c: Case) -> None:
    """Outputs keep every bit with every site recorded."""
    if _main(c.plain) is None:
        raise Nothing("it returns no tensor of its own, by which a run could be made to end")
    kept: dict[str, Any] = {}
    handle = c.network.register_forward_hook(lambda *a: kept.update(output=a[2]))
    try:
        rec = c.m.run(c.feed, record=[*c.names, ":out"])
    finally:
        handle.remove()
    same(kept["output"], c.plain, "recorded")
    for name in c.names:
        site = c.m.sites(name)[0]
        if site.shape is not None:
            found = rec[name].shape
            pairs = zip(found, site.shape, strict=False)
            if len(found) != len(site.shape) or any(
                isinstance(b, int) and a != b for a, b in pairs
            ):
                raise Wrong(f"{name} has shape {tuple(found)}, {site.shape} is told")


FIELDS = {
    "": ("hidden_states", "decoder_hidden_states"),
    "encoder": ("encoder_hidden_states", "hidden_states"),
    "decoder": ("decoder_hidden_states", "hidden_states"),
    "vision": ("hidden_states",),
}


def stream(c: Case) -> None:
    """The stream is what the network calls its hidden states, in every stack."""
    stacks = _stacks(c, "resid_pre")
    if not stacks:
        raise Nothing("no stream")
    try:
        out = c.call(output_hidden_states=True)
    except (TypeError, ValueError) as error:
        raise Nothing(f"no output_hidden_states: {type(error).__name__}") from error
    checked = 0
    for stack, names in stacks.items():
        found = [getattr(out, f, None) for f in FIELDS.get(stack, ("hidden_states",))]
        states = next((s for s in found if isinstance(s, tuple | list)), None)
        if states is not None and stack.startswith("stage"):
            _check_stage(c, stack, names, states)
            checked += 1
        elif states is not None:
            _check_states(c, stack, names, states)
            checked += 1
    if not checked:
        raise Nothing("it returns no hidden states")


def _check_stage(c: Case, stack: str, names: list[str], states: Sequence[Any]) -> None:
    """Hold that a stage begins or ends with its hidden state: one for each, after the stem's.

    ConvNeXt narrows the image before a stage's first block, so that stages end with theirs; Swin
    does behind the last block, so that stages begin with theirs, and the last ends with one, too.
    """
    stages = len(_stacks(c, "resid_pre"))
    if len(states) != stages + 1:
        raise Wrong(f"{len(states)} hidden states, {stages} stages")
    posts = [n.replace("resid_pre", "resid_post") for n in names]
    rec = c.m.run(c.feed, record=[*names, *posts])
    for name, post in zip(names[1:], posts, strict=False):
        if not torch.equal(rec[name], rec[post]):
            raise Wrong(f"{name} is not {post}")
    index = int(stack.removeprefix("stage"))
    if _close(rec[names[0]], states[index]) and index + 1 < stages:
        return
    wanted = _like(states[index + 1], rec[posts[-1]])
    close(rec[posts[-1]], wanted, f"{posts[-1]} and hidden state {index + 1}", 1e-5)


def _check_states(c: Case, stack: str, names: list[str], states: Sequence[Any]) -> None:
    states = states[-len(names) - 1 :]  # Funnel's begin with those of the blocks below
    if len(states) != len(names) + 1:
        raise Wrong(f"{stack}: {len(states)} hidden states, {len(names)} blocks")
    blocks = list(range(len(names)))  # of those that run
    posts = [n.replace("resid_pre", "resid_post") for n in names]
    prefix = f"{stack}." if stack else ""
    norms = [n for n in c.names if n == f"{prefix}final_norm"]
    rec = c.m.run(c.feed, record=[*names, *posts, *norms])
    for name, post in zip(names[1:], posts, strict=False):
        if not torch.equal(rec[name], rec[post]):
            raise Wrong(f"{name} is not {post}")
    told = posts if _starts_after(rec[names[0]], states) else names  # Mamba counts from there
    for name, block in zip(told[:-1], blocks, strict=False):
        close(rec[name], _like(states[block], rec[name]), f"{name} and hidden state {block}", 1e-5)
    last = states[-1]
    ends = [rec[end] for end in (posts[-1], *norms)]
    if not any(_close(end, last) for end in ends) and norms:
        raise Wrong(f"neither {posts[-1]} nor {norms} is the last hidden state")


def _close(got: Tensor, wanted: Any) -> bool:
    try:
        close(got, _like(wanted, got), "", 1e-5)
    except Wrong:
        return False
    return True


def _starts_after(first: Tensor, states: Any) -> bool:
    """Say whether a network's hidden states begin with what the first block returns."""
    start = states[0]
    return isinstance(start, Tensor) and start.shape == first.shape and not start.equal(first)


def _like(x: Any, wanted: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise Wrong(f"a hidden state is a {type(x).__name__}")
    return x.flatten(2).transpose(1, 2) if x.dim() == 4 and wanted.dim() == 3 else x


def _stacks(c: Case, point: str) -> dict[str, list[str]]:
    """Return a point's sites in each stack."""
    found: dict[str, list[str]] = {}
    for name in c.names:
        stem = name.rpartition(".")[0]
        if stem.rpartition(".")[2] == point:
            found.setdefault(stem.rpartition(".")[0], []).append(name)
    return found


ATTENTIONS = {
    "": ("attentions", "decoder_attentions"),
    "encoder": ("encoder_attentions", "attentions"),
    "decoder": ("decoder_attentions", "attentions"),
}


def _eager_run(c: Case) -> tuple[Any, Any]:
    """Return a copy of the network with eager attention, and what it returns with attentions."""
    twin = copy.deepcopy(c.network)
    try:
        twin.set_attn_implementation("eager")
        with torch.no_grad():
            return twin, twin(**c.feed, output_attentions=True)
    except (ValueError, AttributeError, TypeError, RuntimeError) as error:
        raise Nothing(f"no eager form with attentions: {_line(error)}") from error


def attention(c: Case) -> None:
    """Probabilities are those that the eager form returns, under both kernels."""
    stacks = _stacks(c, "attn_probs")
    if not stacks:
        raise Nothing("no probabilities")
    twin, out = _eager_run(c)
    other, checked = Model(twin), 0
    for stack, names in stacks.items():
        found = [getattr(out, f, None) for f in ATTENTIONS.get(stack, ("attentions",))]
        told = next((s for s in found if isinstance(s, tuple | list)), None)
        probs = [p for p in told or () if isinstance(p, Tensor)]
        if not probs:
            continue
        own = c.m.sites(names[0])[0].stack
        assert own is not None
        if told is not None and len(told) == own.num_blocks:
            probs = [told[int(n.rpartition(".")[2])] for n in names]
        if len(probs) != len(names):
            raise Wrong(f"{stack}: {len(probs)} attentions, {len(names)} sites")
        models = [("eager", other), ("configured", c.m)]
        if not all(map(_close, tensors(out)[:1], tensors(c.plain)[:1])):
            models.pop()  # PaliGemma's kernels see other masks: its own logits differ by kernel
        for kernel, m in models:
            rec = m.run(c.feed, record=names)
            for name, wanted in zip(names, probs, strict=True):
                apart = rec[name].sum(-1, keepdim=True) if c.built.kind in SINKS_APART else 1.0
                close(rec[name] / apart, wanted, f"{name} ({kernel})", 1e-5)
        checked += 1
    if not checked:
        raise Nothing("it returns no attentions")


def mix(c: Case) -> None:
    """z is what the attention kernel returned: each head's mix of values."""
    names = [n for n in c.names if n.rpartition(".")[0].split(".")[-1] == "z"]
    if not names:
        raise Nothing("no z")
    rec = c.m.run(c.feed, record=names)
    mixes = _kernel_outputs(c)
    checked = 0
    for name in names:
        site = c.m.sites(name)[0]
        block = site.place.path.rpartition(".")[0]
        while block and block not in mixes:
            block = block.rpartition(".")[0]
        if block in mixes and site.place.call is None:
            checked += 1
            close(rec[name], mixes[block].reshape(rec[name].shape), name, 1e-5)
    if not checked:
        raise Nothing("attention does not go through the registry of transformers")


def _kernel_outputs(c: Case) -> dict[str, Tensor]:
    """Return what the eager kernel returned in each attention module, (B, T, H, K), by path."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    paths = {id(m): p for p, m in c.network.named_modules()}
    found: dict[str, Tensor] = {}
    registry: Any = type(ALL_ATTENTION_FUNCTIONS)
    real = registry.get_interface

    def spying(self: Any, name: str, default: Any) -> Any:
        kernel = real(self, name, default)

        def attend(module: Any, *args: Any, **kwargs: Any) -> Any:
            output = kernel(module, *args, **kwargs)
            found.setdefault(paths.get(id(module), ""), output[0])
            return output

        return attend

    registry.get_interface = spying
    try:
        c.call()
    finally:
        registry.get_interface = real
    return found


def sums(c: Case) -> None:
    """What attention and MLP add up to is the stream, with Gemma 4's inputs of each layer."""
    stacks = {n.rpartition(".")[0].rpartition(".")[0] for n in c.names}
    normed = {n.rpartition(".")[0] for n in c.names if n.rpartition(".")[2] == "final_norm"}
    if (
        not c.m.note.startswith("found by") and not normed & stacks
    ) or c.network.config.is_encoder_decoder:
        raise Nothing("its blocks add more than these, or norm the sum")
    rec, checked = c.m.run(c.feed, record=c.names), 0
    for name in c.names:
        stem, _, block = name.rpartition(".")
        if stem.rpartition(".")[2] != "attn_out":
            continue
        pre, mid, mlp, post = (
            f"{stem.removesuffix('attn_out')}{p}.{block}"
            for p in ("resid_pre", "resid_mid", "mlp_out", "resid_post")
        )
        if c.built.kind in ADDED_TO_NORMED and mid in c.names:
            normed_in = [f"{stem.removesuffix('attn_out')}{p}_in.{block}" for p in ("attn", "mlp")]
            rec_in = c.m.run(c.feed, record=normed_in)
            close(rec_in[normed_in[0]] + rec[name], rec[mid], f"parts of {mid}", 1e-5)
            close(rec_in[normed_in[1]] + rec[mlp], rec[post], f"parts of {post}", 1e-5)
            checked += 1
            continue
        if {pre, mlp, post} <= set(c.names):
            path = c.m.sites(post)[0].place.path
            more = _main(c.ran.get(f"{path}.post_per_layer_input_norm"))
            total = rec[pre] + rec[name] + rec[mlp] + (0.0 if more is None else more)
            times = getattr(c.network.get_submodule(path), "layer_scalar", 1.0)
            close(total * times, rec[post], f"parts of {post}", 1e-5)
            checked += 1
        if {pre, mid} <= set(c.names):
            close(rec[pre] + rec[name], rec[mid], f"parts of {mid}", 1e-5)
    if not checked:
        raise Nothing("no parts that add up are offered")


def embeddings(c: Case) -> None:
    """`embeddings` is what the network's own input embeddings return."""
    names = [
        n for n in c.names if n.rpartition(".")[2] == "embeddings" and n != "vision.embeddings"
    ]
    if not names or "input_ids" not in c.feed:
        raise Nothing("no token embeddings")
    own = c.network.get_input_embeddings()
    for name in names:
        ids = c.feed["decoder_input_ids" if name.startswith("decoder") else "input_ids"]
        path = c.m.sites(name)[0].place.path
        module = c.network.get_submodule(path)
        if name == "embeddings" and module is not own:
            raise Wrong(f"{name} is {path}, not the input embeddings")
        with torch.no_grad():
            close(c.m.run(c.feed, record=[name])[name], module(ids), name)


def restored(c: Case) -> None:
    """Strength 0 and putting back what was there change no bit (attention: to rounding)."""
    v = c.vector()
    same(c.m.run(c.feed, edits=[ak.add(c.middle.name, v, scale=0.0)]).output, c.plain, "strength 0")
    plain = [
        n for n in c.names if ".attn_" not in f".{n}" or n.rpartition(".")[0][-3:] in ("_in", "out")
    ]
    plain = [n for n in plain if c.m.sites(n)[0].place.side in ("in", "out")]
    rest = [n for n in c.names if n not in plain]
    try:
        same(_put_back(c, plain), c.plain, "put back")
    except SiteError:  # of some the axes cannot be known: hold the others, then say so
        for n in plain:
            with suppress(SiteError):
                same(_put_back(c, [n]), c.plain, f"{n} put back")
        raise
    if rest:
        for a, b in zip(tensors(_put_back(c, rest)), tensors(c.plain), strict=True):
            close(a, b, "attention put back")


def _put_back(c: Case, names: Sequence[str]) -> Any:
    """Return the output of a run in which sites get what they had."""
    return c.m.run(c.feed, edits=[ak.apply(n, torch.clone) for n in names]).output


def edit(c: Case) -> None:
    """A middle edit is what a hook written by hand does."""
    v = c.vector()
    tokens = [1, 3] if c.text and c.stream_like.dim() == 3 else None
    where = None if tokens is None else ak.Where(tokens=tokens)
    with by_hand(c.network, c.middle, added(v, tokens)):
        wanted = c.call()
    moved = [not torch.equal(a, b) for a, b in zip(tensors(wanted), tensors(c.plain), strict=True)]
    if not any(moved):
        raise Nothing("the hook by hand moves nothing")
    got = c.m.run(c.feed, edits=[ak.add(c.middle.name, v, where=where)]).output
    for i, (a, b) in enumerate(zip(tensors(got), tensors(wanted), strict=True)):
        close(a, b, f"edit of {c.middle.name}, output {i}", 1e-5)


def gradient(c: Case) -> None:
    """The gradient of a middle edit is that through a hook written by hand."""
    tokens = [1, 3] if c.text and c.stream_like.dim() == 3 else None
    where = None if tokens is None else ak.Where(tokens=tokens)
    gen = torch.Generator().manual_seed(1)
    v = c.vector(requires_grad=True)

    def slope(output: Any) -> Tensor:
        own = [t for t in tensors(output) if t.requires_grad]
        if not own:
            raise Nothing("the output does not depend on the middle by a gradient")
        target = torch.randn(own[0].shape, generator=gen.manual_seed(1))
        (grad,) = torch.autograd.grad((own[0] * target).sum(), v, allow_unused=True)
        if grad is None:
            raise Nothing("the output does not depend on the middle by a gradient")
        return grad

    try:
        with by_hand(c.network, c.middle, added(v, tokens)):
            wanted = slope(c.network(**c.feed))
    except RuntimeError as error:
        raise Nothing(f"its own gradient fails: {_line(error)}") from error
    run = c.m.run(c.feed, edits=[ak.add(c.middle.name, v, where=where)], grad=True)
    close(slope(run.output), wanted, "gradient", 1e-4)


def generation(c: Case) -> None:
    """Edits in `generate`, everywhere and on written tokens, are what hooks by hand do."""
    ids = c.feed.get("decoder_input_ids", c.feed.get("input_ids"))
    can_generate = getattr(c.network, "can_generate", lambda: False)()
    if not can_generate or ids is None or ids.dim() != 2:
        raise Nothing("it does not write text")
    if c.middle.stack is not None and c.middle.stack.name == "encoder":
        raise Nothing("the middle is in the encoder")
    _set_ends(c)
    own = Model(c.network, tokenizer())
    given = own.encode(ROWS).kwargs if c.text else c.feed
    kwargs = {k: x for k, x in given.items() if k not in ("position_ids", "decoder_input_ids")}
    plain = _plainly_written(c, kwargs)
    for phase in ("all", "generated"):
        v, wanted = _moving(c, kwargs, plain, phase)
        edits = [ak.add(c.middle.name, v, where=ak.Where(tokens=phase))]
        with own.edited(edits):
            got = _written(c, kwargs)
        if not torch.equal(got, wanted):
            raise Wrong(f"edited, tokens={phase!r}: wrote other tokens than the hook by hand")
        if c.text:
            texts = own.generate(ROWS, edits=edits, max_new_tokens=NEW, num_beams=1)
            alone = [_text(c, own, row, v, phase) for row in ROWS]
        else:
            texts = own.generate(kwargs, edits=edits, max_new_tokens=NEW, num_beams=1)
            alone = _new_texts(c, own, kwargs, wanted)
        if texts != alone:
            raise Wrong(f"generate, tokens={phase!r}: wrote other tokens than the hook by hand")


def _set_ends(c: Case) -> None:
    """Let the network write as long as it is asked to, and begin if it does not say with what."""
    settings = c.network.generation_config
    settings.eos_token_id = None
    settings.forced_eos_token_id = None
    answers = "decoder_input_ids" in c.feed
    if answers and getattr(settings, "decoder_start_token_id", 0) is None:
        settings.decoder_start_token_id = 2


def _plainly_written(c: Case, kwargs: Mapping[str, Any]) -> Tensor:
    """Return what the network writes by itself, if the middle runs for each token."""
    calls: list[Any] = []
    module = c.network.get_submodule(c.middle.place.path)
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    try:
        plain = _written(c, kwargs)
    except Exception as error:  # whatever transformers' own generate raises
        raise Nothing(f"its own generate fails: {type(error).__name__}: {_line(error)}") from error
    finally:
        handle.remove()
    if len(calls) < NEW:
        raise Nothing("the middle does not run for each token")
    return plain


def _text(c: Case, own: Model, row: list[int], v: Tensor, phase: str) -> str:
    """Return what a prompt goes on to by itself, under a hook by hand."""
    kwargs = {k: x for k, x in own.encode([row]).kwargs.items() if k != "position_ids"}
    with by_hand(c.network, c.middle, _at_phase(v, phase, _num_given(c, kwargs))):
        ids = _written(c, kwargs)
    [text] = _new_texts(c, own, kwargs, ids)
    return text


def _new_texts(c: Case, own: Model, kwargs: Mapping[str, Any], written: Tensor) -> list[str]:
    """Return what the network's own `generate` wrote, without the prompt."""
    start = _num_given(c, kwargs) if "input_ids" in kwargs else 0
    start = 0 if c.network.config.is_encoder_decoder else start
    return list(own.tokenizer.batch_decode(written[:, start:], skip_special_tokens=True))


def _num_given(c: Case, kwargs: Mapping[str, Any]) -> int:
    """Return how many tokens are not written: the prompt's, or those that a decoder begins with."""
    text = "input_ids" in kwargs and not c.network.config.is_encoder_decoder
    return int(kwargs["input_ids"].shape[1]) if text else 1


def _at_phase(v: Tensor, phase: str, given: int) -> Callable[[Tensor, int], Tensor]:
    """Return a change that adds a vector at all tokens, or at written ones."""

    def change(x: Tensor, number: int) -> Tensor:
        if phase == "all":
            return x + v
        if x.shape[1] > given:  # without a cache each pass reads the prompt again
            return torch.cat([x[:, :given], x[:, given:] + v], 1)
        return x + v if number > 0 else x

    return change


def _written(c: Case, kwargs: Mapping[str, Any]) -> Tensor:
    """Return what the network's own `generate` writes."""
    settings = {"max_new_tokens": NEW, "do_sample": False, "num_beams": 1}
    if c.text:  # beside images BLIP's says itself what pads
        settings["pad_token_id"] = 0
    with torch.no_grad():
        return torch.as_tensor(c.network.generate(**kwargs, **settings))


def _moving(c: Case, kwargs: Mapping[str, Any], plain: Tensor, phase: str) -> tuple[Tensor, Tensor]:
    """Return a vector that changes what is written, and what a hook by hand writes with it."""
    for scale in (1.0, 4.0, 16.0):
        v = c.vector(scale)
        with by_hand(c.network, c.middle, _at_phase(v, phase, _num_given(c, kwargs))):
            wanted = _written(c, kwargs)
        if not torch.equal(wanted, plain):
            return v, wanted
    raise Nothing("no strength moves what is written")


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]


def _ragged(c: Case, rows: Sequence[Sequence[int]]) -> Any:
    """Return rows of several lengths as a user gives them."""
    if "decoder_input_ids" not in c.feed:
        return [list(r) for r in rows]
    batch = dict(c.m.encode([list(r) for r in rows]).kwargs)
    return {**batch, "decoder_input_ids": torch.tensor(TARGETS[: len(rows)])}


def _check_readable(c: Case, given: Any) -> None:
    """Refuse to compare what the network itself cannot read."""
    try:
        with torch.no_grad():
            c.network(**c.m.encode(given).kwargs)
    except Exception as error:  # whatever the network raises
        raise Nothing(f"its own call fails: {type(error).__name__}: {_line(error)}") from error


Version = tuple[Site | None, Sequence[int] | None, Tensor]


def swept(c: Case) -> None:
    """A sweep is each version alone under hooks written by hand, ragged rows included."""
    logits = getattr(c.plain, "logits", None)
    if not c.text or not isinstance(logits, Tensor):
        raise Nothing("no logits of tokens")
    if logits.dim() != 3:
        raise Nothing("one score for each row, none for each token")
    v = c.vector()
    sites = [c.middle]
    stem, _, _ = c.middle.name.rpartition(".")
    if c.middle.stack is not None:
        sites = [c.m.sites(f"{stem}.*")[0], c.middle]
    versions: list[Version] = [(None, None, v)]
    versions += [(s, None, v * (i + 1)) for i, s in enumerate(sites)]
    versions += [(sites[-1], [2], 3 * v), (sites[0], [1, 2], -v)]
    gen = torch.Generator().manual_seed(5)
    weights = torch.randn(logits.shape[-1], generator=gen)

    def metric(x: Tensor) -> Tensor:
        return x[:, -1] @ weights

    for rows in (ROWS[:1] * 2, ROWS):
        given = _ragged(c, rows)
        alone = [_ragged(c, [row]) for row in rows]
        for one in (given, *alone):
            _check_readable(c, one)
        wanted = torch.stack(
            [torch.cat([_alone(c, r, own, metric) for r in alone]) for own in versions]
        )
        variants = [
            [] if s is None else [ak.add(s.name, own, where=None if t is None else ak.Where(t))]
            for s, t, own in versions
        ]
        got = c.m.sweep(given, variants, metric=metric)
        close(got, wanted, f"sweep of {len(rows)} rows", 1e-4)


def _alone(c: Case, given: Any, version: Version, metric: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the metric of one version of one row by itself, under a hook written by hand."""
    site, tokens, v = version
    change = added(torch.zeros_like(v) if site is None else v, tokens)
    with by_hand(c.network, site or c.middle, change), torch.no_grad():
        logits = c.network(**c.m.encode(given).kwargs).logits
    return metric(logits[:, -1:])


def batched(c: Case) -> None:
    """Rows of several lengths in one batch are what each is alone."""
    if not c.text:
        raise Nothing("no token ids")
    names = [n for n in c.names if c.has_points] or c.sites_of(c.middle.place.path)
    for row in ROWS:
        _check_readable(c, _ragged(c, [row]))
    alone = [c.m.run(_ragged(c, [r]), record=names) for r in ROWS]
    rec = c.m.run(_ragged(c, ROWS), record=names)
    for name in names:
        rows = rec.rows_of(name)
        axes = c.m.sites(name)[0].axes
        for b, single in enumerate(alone):
            valid, own = rows.valid[b], single.rows_of(name).valid[0]
            x, wanted = rec[name][b], single[name][0]
            if x.dim() == 2 and x.shape[0] != len(valid) == x.shape[1]:  # (D, T)
                x, wanted = x.T, wanted.T
            if "S" in axes:
                x, wanted = x[:, valid], wanted[:, own]
                keys = x.shape[-1] == len(valid)
                x = x[..., valid] if keys else x
                wanted = wanted[..., own] if keys and wanted.shape[-1] == len(own) else wanted
                if name.rpartition(".")[0].endswith("scores"):
                    x, wanted = x.softmax(-1), wanted.softmax(-1)
            else:
                x, wanted = x[valid], wanted[own]
            close(x, wanted, f"{name}, row {b}", 1e-4)


CHECKS: dict[str, Callable[[Case], None]] = {
    "bits": bits,
    "stream": stream,
    "attention": attention,
    "mix": mix,
    "sums": sums,
    "embeddings": embeddings,
    "restored": restored,
    "edit": edit,
    "gradient": gradient,
    "generation": generation,
    "sweep": swept,
    "batch": batched,
}


def examined(built: Built) -> dict[str, Any]:
    """Return every cell of one type, as plain data.

    Returns:
        "what", "class", "note", "points" (of each the layers that have it, and the reasons of
        those that do not) and "cells".

    Raises:
        NoFeed: Nothing that the network reads was found.
    """
    result: dict[str, Any] = {"what": built.what, "class": type(built.network).__name__}
    cells: dict[str, Cell] = {}
    feed = even(built)
    with suppress(Exception), torch.no_grad():  # transformers keeps hooks of its own for these
        built.network(**feed, output_hidden_states=True, output_attentions=True)
    before, config = state(built.network), built.network.config.to_dict()
    try:
        m = Model(built.network)
        cells["open"] = Cell("holds")
    except ActkitError as error:
        cells["open"] = Cell("refused", _line(error))
    except Exception as error:  # noqa: BLE001 - a bare error is what is looked for
        cells["open"] = Cell("wrong", f"bare {type(error).__name__}: {_line(error)}")
    if cells["open"].status == "holds":
        result |= {"note": m.note, "points": _points(m)}
        case = Case(built, feed, m)
        for name, check in CHECKS.items():
            cells[name] = _cell(check, case)
    left = state(built.network) == before
    kept = built.network.config.to_dict() == config
    cells["clean"] = Cell("holds") if left and kept else Cell("wrong", "something was left behind")
    result["cells"] = {k: [c.status, c.words] for k, c in cells.items()}
    return result


def _is_steady(c: Case) -> bool:
    """Say whether two runs of the network by itself agree; ViT-MAE hides patches at random."""
    try:
        same(c.call(), c.plain, "two runs")
    except Wrong:
        return False
    return True


def _cell(check: Callable[[Case], None], case: Case) -> Cell:
    try:
        if not _is_steady(case):
            raise Nothing("the network itself is random in evaluation")
        check(case)
    except Nothing as error:
        return Cell("none", str(error))
    except Wrong as error:
        return Cell("wrong", str(error))
    except ActkitError as error:
        return Cell("refused", f"{type(error).__name__}: {_line(error)}")
    except Exception as error:  # noqa: BLE001 - a bare error is what is looked for
        return Cell("wrong", f"bare {type(error).__name__}: {_line(error)}")
    return Cell("holds")


def _points(m: Model) -> dict[str, Any]:
    """Return of each point, by stack and name, which layers have it and why others do not."""
    found: dict[str, Any] = {}
    for site in m.sites(refused=True):
        if site.stack is None:
            continue
        stem, _, last = site.name.rpartition(".")
        name, block = (stem, int(last)) if last.isdigit() else (site.name, None)
        own = found.setdefault(name, {"has": [], "lacks": {}})
        if site.refused:
            own["lacks"].setdefault(site.refused, []).append(block)
        else:
            own["has"].append(block)
    return found
