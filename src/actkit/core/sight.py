"""What flows through an unknown decoder while it reads two rows of tokens: the numbers of a check.

Shapes: L blocks, B batch, T tokens, D width.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from actkit.core.context import ForwardContext
from actkit.core.forms import device_of
from actkit.core.hooks import Hooks
from actkit.core.sites import Place, Site
from actkit.core.taps import Tap

ROWS, LENGTH = 2, 5


class Sight:
    """What went into and came out of a network's modules in one run.

    Watched are the blocks, their children and the maps and activations inside, and outside of the
    blocks the embeddings and norms.

    Attributes:
        network: The network.
        block: Its first block.
        children: The block's own children, without dropouts.
        outer: Embeddings and norms outside of the blocks, by their path.
        ids: The tokens that it read.
        output: What the network returned.
    """

    def __init__(self, network: nn.Module, blocks: str, number: int) -> None:
        """Run the network; `blocks` is their path with "{}" where the index goes."""
        self.network, self.ids = network, tokens(network)
        self.block = network.get_submodule(blocks.format(0))
        self._blocks = [blocks.format(i) for i in range(number)]
        self._inner = {p: m for p, m in self.block.named_modules() if _tells(p, m)}
        self.children = {p: m for p, m in self._inner.items() if p and "." not in p}
        self.outer = {
            p: m
            for p, m in network.named_modules()
            if not p.startswith(blocks.partition("{")[0])
            and (isinstance(m, nn.Embedding) or is_norm(m))
        }
        self._values: dict[str, Tensor] = {}
        self._flowed: dict[str, tuple[Tensor, int]] = {}
        known = {path for path, _ in network.named_modules()}
        inside = (self._path(b, p) for b in self._blocks for p in self._inner)
        paths = [p for p in (*inside, *self.outer) if p in known]
        sites = [Site(f"{p}:{s}", place=Place(p, s)) for p in paths for s in ("in", "out")]
        self.output = watched(network, [Tap(s, read=self._keep) for s in sites])

    def __call__(self, path: str, side: str) -> Tensor | None:
        """Return what flowed at a path of all blocks, (L, B, T, ...); None unless in each."""
        found = [self._values.get(f"{self._path(b, path)}:{side}") for b in self._blocks]
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

    def logits(self, words: int) -> tuple[tuple[int | str, ...], Tensor | None]:
        """Return the way to the logits in the output, and the logits; None if there are none.

        What goes by no name must have one entry for each of the words that have embeddings.
        """
        named = getattr(self.output, "logits", None)
        first = self.output[0] if isinstance(self.output, tuple) else None
        ways: list[tuple[tuple[int | str, ...], Any]] = [(("logits",), named)]
        ways += [((), self.output), ((0,), first)]
        for way, x in ways:
            fits = isinstance(x, Tensor) and x.dim() == 3 and x.shape[:2] == self.ids.shape
            if fits and (way == ("logits",) or x.shape[2] == words):
                return way, x
        return (), None

    def outside(self, path: str, side: str) -> Tensor | None:
        """Return what flowed at a path outside of the blocks."""
        return self._values.get(f"{path}:{side}")

    def fleeting(self, place: Place) -> bool:
        """Say whether the network overwrote what flowed at a place of any block."""
        names = [f"{self._path(b, place.path)}:{place.side}" for b in self._blocks]
        flowed = [self._flowed[n] for n in names if n in self._flowed]
        return any(x._version != version for x, version in flowed)

    def _keep(self, site: Site, x: Tensor, _: ForwardContext) -> None:
        self._values[site.name] = x.clone()
        self._flowed[site.name] = (x, x._version)

    def _path(self, block: str, path: str) -> str:
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


def watched(network: nn.Module, taps: Iterable[Tap]) -> Any:
    """Let a network read tokens under taps, in evaluation mode; return what it returned."""
    ids = tokens(network)
    with (
        _evaluating(network),
        torch.random.fork_rng(devices=[]),
        torch.no_grad(),
        Hooks(network, taps, {"": ""}),
    ):
        if hasattr(type(network), "base_model_prefix"):
            return network(input_ids=ids)
        return network(ids)


def tokens(network: nn.Module) -> Tensor:
    """Return different token ids, without the one that pads."""
    sizes = [m.num_embeddings for m in network.modules() if isinstance(m, nn.Embedding)]
    pad = getattr(getattr(network, "config", None), "pad_token_id", None)
    words = [i for i in range(max(sizes)) if i != pad]
    device = device_of(network)
    ids = [words[(3 + 7 * i) % len(words)] for i in range(ROWS * LENGTH)]
    return torch.tensor(ids, device=device).view(ROWS, LENGTH)


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
