"""What flows through an unknown network while it reads two rows: the numbers of a check.

Shapes: L blocks, B batch, T tokens, H heads, S keys, K head width, D width.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from actkit.core.run.context import ForwardContext
from actkit.core.run.hooks import Hooks
from actkit.core.run.mixes import Mixes
from actkit.core.run.taps import Tap
from actkit.core.sites.readable import readable
from actkit.core.sites.site import Place, Site


class DryRun:
    """What went into and came out of a network's modules in one run.

    Watched are the blocks, their children and the maps and activations inside, and outside of the
    blocks the embeddings and norms.

    Attributes:
        network: The network.
        blocks: The paths of its blocks.
        outer: Embeddings and norms outside of the blocks, by their path.
        feed: What it read, by argument; "" where the argument has no name.
        output: What the network returned.
        again: Whether a block ran more than once.
    """

    def __init__(self, network: nn.Module, blocks: str, number: int) -> None:
        """Run the network; `blocks` is their path with "{}" where the index goes."""
        self.network, self.feed = network, fed(network)
        self.blocks = [blocks.format(i) for i in range(number)]
        self.inner = [_told(network.get_submodule(b)) for b in self.blocks]
        self.outer = {
            p: m
            for p, m in network.named_modules()
            if not p.startswith(blocks.partition("{")[0])
            and (isinstance(m, nn.Embedding) or is_norm(m))
        }
        self.again = False
        self._values: dict[str, Tensor] = {}
        self._flowed: dict[str, tuple[Tensor, int]] = {}
        known = {path for path, _ in network.named_modules()}
        pairs = zip(self.blocks, self.inner, strict=True)
        inside = (_path(b, p) for b, inner in pairs for p in inner)
        paths = [p for p in (*inside, *self.outer) if p in known]
        sites = [Site(f"{p}:{s}", place=Place(p, s)) for p in paths for s in ("in", "out")]
        taps = [Tap(s, read=self._keep) for s in sites]
        taps += [Tap(s, read=self._note_again) for s in self._second_calls()]
        self._seen = Mixes(len(self.read))
        self._mixed: dict[str, int] = {}
        with self._seen:
            self.output = watched(network, taps, self.feed)

    @property
    def read(self) -> Tensor:
        """Return what the network read: its token ids, or the images or the sound."""
        return next(iter(self.feed.values()))

    @property
    def ids(self) -> Tensor | None:
        """Return the token ids that the network read, if it reads any."""
        return None if self.read.is_floating_point() else self.read

    @property
    def ran(self) -> list[int]:
        """Return which blocks ran, in order."""
        return [i for i, b in enumerate(self.blocks) if self.value(b, "out") is not None]

    def groups(self) -> list["Group"]:
        """Return the blocks that ran in groups of those that are built alike."""
        alike: dict[Any, list[int]] = {}
        for i in self.ran:
            path, inner = self.blocks[i], self.inner[i]
            kind = type(self.network.get_submodule(path))
            build = tuple((p, type(m), *(w.shape for w in _weights(m))) for p, m in inner.items())
            alike.setdefault((kind, build), []).append(i)
        return [Group(self, indices) for indices in alike.values()]

    def value(self, path: str, side: str) -> Tensor | None:
        """Return what flowed at a path; None if nothing did."""
        return self._values.get(f"{path}:{side}")

    def mixes(self, path: str) -> list[Tensor]:
        """Return what heads made of values, (B, H, T, K), while a module ran."""
        begun, ended = (self._mixed.get(f"{path}:{side}", 0) for side in ("in", "out"))
        return self._seen.found[begun:ended]

    def logits(self, words: int) -> tuple[tuple[int | str, ...], Tensor | None]:
        """Return the way to the logits in the output, and the logits; None if there are none.

        What goes by no name must have one entry for each of the words that have embeddings.
        """
        if self.ids is None:
            return (), None
        named = getattr(self.output, "logits", None)
        first = self.output[0] if isinstance(self.output, tuple) else None
        ways: list[tuple[tuple[int | str, ...], Any]] = [(("logits",), named)]
        ways += [((), self.output), ((0,), first)]
        for way, x in ways:
            fits = isinstance(x, Tensor) and x.dim() == 3 and x.shape[:2] == self.ids.shape
            if fits and (way == ("logits",) or x.shape[2] == words):
                return way, x
        return (), None

    def overwritten(self, paths: Iterable[str], side: str) -> bool:
        """Say whether the network overwrote what flowed at one of the paths."""
        names = [f"{p}:{side}" for p in paths]
        flowed = [self._flowed[n] for n in names if n in self._flowed]
        return any(x._version != version for x, version in flowed)

    def _second_calls(self) -> list[Site]:
        return [Site(f"{b}:out#1", place=Place(b, "out", call=1)) for b in self.blocks]

    def _note_again(self, *_: Any) -> None:
        self.again = True

    def _keep(self, site: Site, x: Tensor, _: ForwardContext) -> None:
        self._values[site.name] = x.clone()
        self._flowed[site.name] = (x, x._version)
        self._mixed[site.name] = len(self._seen.found)


class Group:
    """Blocks that are built alike, and what flowed through them.

    Attributes:
        indices: Which blocks.
        block: The first of them.
        children: The block's own children, without dropouts.
    """

    def __init__(self, dry_run: DryRun, indices: Sequence[int]) -> None:
        """Look at some blocks of a run."""
        self.dry_run, self.indices = dry_run, tuple(indices)
        self._paths = [dry_run.blocks[i] for i in indices]
        self._inner: Mapping[str, nn.Module] = dry_run.inner[indices[0]]
        self.block = dry_run.network.get_submodule(self._paths[0])
        self.children = {p: m for p, m in self._inner.items() if p and "." not in p}

    def __call__(self, path: str, side: str) -> Tensor | None:
        """Return what flowed at a path of all these blocks, (L, B, T, ...); None unless in each."""
        found = [self.dry_run.value(_path(b, path), side) for b in self._paths]
        present = [x for x in found if x is not None]
        if len(present) < len(found) or len({x.shape for x in present}) > 1:
            return None
        return torch.stack(present)

    def width(self, path: str, side: str) -> int:
        """Return the width of what flowed at a path of all blocks, 0 if nothing did."""
        x = self(path, side)
        return 0 if x is None else x.shape[-1]

    def maps(self, child: str) -> list[str]:
        """Return the paths of the linear maps below a child of the block; none for ""."""
        below = [p for p, m in self._inner.items() if is_map(m)]
        return [p for p in below if child and p.startswith(f"{child}.")]

    def activations(self, child: str) -> list[nn.Module]:
        """Return the modules without weights below a child of the block."""
        below = {p: m for p, m in self._inner.items() if p.startswith(f"{child}.")}
        return [m for m in below.values() if not [*m.parameters()]]

    def mix(self, child: str) -> Tensor | None:
        """Return what the heads of a child made of values, (L, B, H, T, K); None if that varies."""
        found = [self.dry_run.mixes(_path(b, child)) for b in self._paths]
        if any(len(m) != 1 for m in found) or len({m[0].shape for m in found}) > 1:
            return None
        return torch.stack([m[0] for m in found])

    def overwritten(self, place: Place) -> bool:
        """Say whether the network overwrote what flowed at a place of any block."""
        return self.dry_run.overwritten((_path(b, place.path) for b in self._paths), place.side)


def _told(block: nn.Module) -> dict[str, nn.Module]:
    return {p: m for p, m in block.named_modules() if _tells(p, m)}


def _weights(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False)]


def _path(block: str, path: str) -> str:
    return f"{block}.{path}".rstrip(".")


def is_norm(module: nn.Module) -> bool:
    """Say whether a module is a norm, by the name of its class."""
    return "norm" in type(module).__name__.lower()


def is_map(module: nn.Module) -> bool:
    """Say whether a module is a linear map, as `nn.Linear` and the `Conv1D` of GPT-2 are."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2 and not isinstance(module, nn.Embedding)


def _tells(path: str, module: nn.Module) -> bool:
    """Say whether to watch a module of a block: the block, its children, maps and activations."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Dropout | nn.Embedding):
        return False
    holds = any(True for _ in (*module.parameters(), *module.buffers()))
    return "." not in path or is_map(module) or not (holds or [*module.children()])


def fed(network: nn.Module) -> dict[str, Tensor]:
    """Return two rows that a network can read, by argument."""
    return readable(network, lambda feed: watched(network, [], feed))


def watched(
    network: nn.Module, taps: Iterable[Tap], feed: Mapping[str, Tensor] | None = None
) -> Any:
    """Let a network read under taps, in evaluation mode; return what it returned."""
    feed = fed(network) if feed is None else feed
    with (
        _evaluating(network),
        torch.random.fork_rng(devices=[]),
        torch.no_grad(),
        Hooks(network, taps, {"": ""}),
    ):
        if "" in feed:
            return network(feed[""])
        return network(**feed)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Turn training mode off, and on again where it was on."""
    training = [m for m in network.modules() if m.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """Say whether two tensors are known and hold the same numbers, bit by bit."""
    return a is not None and b is not None and torch.equal(a, b)


def adds_up(total: Tensor | None, *parts: Tensor | None) -> bool:
    """Say whether a sum is the total up to rounding, and each part but the first matters to it.

    Two roundings of the parts are allowed, entry by entry, so a part that is normed or left out is
    seen in any dtype. Rounding also knows nothing of the parts: over the entries of a part that
    are far larger, the errors' projection on it must stay within six standard deviations, so that
    a part that is scaled a little is seen in low precision, too. In every block (the first axis)
    there must be such entries; otherwise nothing was checked, and nothing is claimed.
    """
    known = [p for p in (total, *parts) if p is not None]
    if total is None or len(known) <= len(parts) or len({p.shape for p in known}) > 1:
        return False
    exact = [p.double() for p in known]
    size = torch.stack([p.abs() for p in exact]).sum(0)
    bound = 2 * torch.finfo(total.dtype).eps * size + torch.finfo(torch.float64).tiny
    error = (sum(exact[1:]) - exact[0]) / bound
    for part in (p / bound for p in exact[2:]):
        large = part.abs() > 8
        drift = (error * part)[large].sum().abs() / part[large].norm()
        if not large.flatten(1).any(1).all() or drift > 6:
            return False
    return bool((error.abs() <= 1).all())
