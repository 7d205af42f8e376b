"""The sites that a scan asks its questions of, and what they are called."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import nn

from actkit.core.errors import ModelError
from actkit.core.sites.site import Site
from actkit.model import Model

ACTIVATIONS = (".activation", ".activations")
"""Where torch and transformers keep their activation functions."""
TOGETHER = ("path", "neurons")
"""The kinds of sites that have one answer for all of them."""
LISTS = (nn.ModuleList, nn.Sequential)


@dataclass(frozen=True)
class Layers:
    """The sites of one stack of blocks.

    Attributes:
        name: The stack's name: "encoder", "vision"; "" where a network has one stack.
        stream: What flows from block to block.
        hidden: What the MLPs or activation functions compute inside; the stream if none is found.
        attention: Attention probabilities.
        entry: What flows into the first block.
        values: What attention averages.
        gates: The gates of gated MLPs.
        words: For each of these kinds what was measured, in words.
    """

    name: str
    stream: tuple[Site, ...]
    hidden: tuple[Site, ...]
    attention: tuple[Site, ...]
    words: Mapping[str, str]
    entry: tuple[Site, ...] = ()
    values: tuple[Site, ...] = ()
    gates: tuple[Site, ...] = ()

    def of(self, kind: str) -> tuple[Site, ...]:
        """Return the sites that a kind of question has an answer for each of."""
        if kind == "path":  # without a table blocks may differ in width and in rows
            return (*self.entry, *self.stream) if self.entry else ()
        if kind == "neurons":
            return tuple(s for s in self.hidden if s.name.startswith("mlp_hidden."))
        if kind == "heads":
            values = {s.name for s in self.values}
            return tuple(s for s in self.attention if _twin(s, "v") in values)
        sites: tuple[Site, ...] = getattr(self, kind)
        return sites

    def keys(self, kind: str) -> list[str | tuple[str, ...]]:
        """Return the sites as `Model.observe` takes them; a tuple where they are read together.

        Args:
            kind: "stream", "hidden", "attention" or "gates" for each site alone; "path" for the
                whole stream, from what enters it; "neurons" for all the MLPs of a decoder;
                "heads" for a layer's attention, values and stream.
        """
        if kind in TOGETHER:
            return [tuple(s.name for s in self.of(kind))] if self.of(kind) else []
        if kind == "heads":
            return [(s.name, _twin(s, "v"), _twin(s, "resid_post")) for s in self.of(kind)]
        return [s.name for s in self.of(kind)]


def _twin(site: Site, point: str) -> str:
    return site.name.replace("attn_probs", point)


def find_layers(model: Model) -> list[Layers]:
    """Return the layers of each stack.

    By the points of the network's table; without a table, the outputs of the modules in the
    network's outermost lists, and inside them those of the activation functions.

    Raises:
        ModelError: The network has neither.
    """
    sites = [s for s in model.sites() if s.stack is not None]
    if not sites:
        return [_without_table(model)]
    stacks = groupby(sites, key=lambda s: s.stack.name if s.stack else "")
    return [found for name, own in stacks if (found := _stack(name, list(own))).stream]


def _stack(name: str, sites: Sequence[Site]) -> Layers:
    stream, hidden = _of(sites, "resid_post"), _of(sites, "mlp_hidden")
    words = {
        "stream": "the residual stream after each block",
        "hidden": "what each MLP computes inside, before it is projected back",
        "attention": "attention probabilities",
        "heads": "attention probabilities, the values they average and the residual stream",
        "gates": "the weights of each gated MLP; no data are read",
        "neurons": "what each MLP computes inside, switched off where it is small",
    }
    words["path"] = words["stream"]
    if not hidden:
        words["hidden"] = f"{words['stream']}, since this architecture has no site inside its MLPs"
    entry, values = _of(sites, "resid_pre")[:1], _of(sites, "v")
    attention = _of(sites, "attn_probs")
    gates = _of(sites, "mlp_gate")
    return Layers(name, stream, hidden or stream, attention, words, entry, values, gates)


def _of(sites: Sequence[Site], point: str) -> tuple[Site, ...]:
    return tuple(s for s in sites if s.point == point)


def _without_table(model: Model) -> Layers:
    blocks = dict(_blocks(model.module))
    if len(blocks) < 2:
        raise ModelError(
            f"a scan needs a network with a list of blocks, {model.name} has {len(blocks)}; "
            "use model.observe with sites of your choice"
        )
    inside = [
        f"{path}.{name}" if name else path
        for path, block in blocks.items()
        for name, part in block.named_modules()
        if type(part).__module__.endswith(ACTIVATIONS)
        and not isinstance(part, nn.MultiheadAttention)
    ]
    words = {
        "stream": "the output of each block",
        "hidden": "the output of each activation function (of one that runs several times in a "
        "block, its first call)",
    }
    if not inside:
        words["hidden"] = f"{words['stream']}, since no activation function is a module"
    stream = _outputs(model, blocks)
    return Layers("", stream, _outputs(model, inside, "#0") or stream, (), words)


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that stand in lists, by path; lists are entered, blocks are not."""
    for name, part in module.named_children():
        if type(module) in LISTS and type(part) not in LISTS:
            yield f"{prefix}{name}", part
        else:
            yield from _blocks(part, f"{prefix}{name}.")


def _outputs(model: Model, paths: Iterable[str], call: str = "") -> tuple[Site, ...]:
    return tuple(site for path in paths for site in model.sites(f"{path}:out{call}"))


def labels(names: Sequence[str]) -> list[str]:
    """Return short names of layers: what the sites' names do not share.

    Example:
        >>> labels(["resid_post.0", "resid_post.1"]), labels(["b.0.act:out", "b.1.act:out"])
        (['0', '1'], ['0', '1'])
        >>> labels(["net.stem:out", "net.blocks.0:out", "net.blocks.1:out"])
        ['stem', 'blocks.0', 'blocks.1']
    """
    if len(names) < 2:
        return list(names)
    parts = [n.replace(":", ".").split(".") for n in names]
    parts = _trimmed(_trimmed(parts, backwards=True))
    if len({len(p) for p in parts}) == 1:
        differ = [i for i in range(len(parts[0])) if len({p[i] for p in parts}) > 1]
        parts = [[p[i] for i in differ] for p in parts]
    return [".".join(p) for p in parts]


def _trimmed(parts: list[list[str]], backwards: bool = False) -> list[list[str]]:
    """Drop what all names begin with (or end with), but no name whole."""
    at = -1 if backwards else 0
    while min(map(len, parts)) > 1 and len({p[at] for p in parts}) == 1:
        parts = [p[:-1] if backwards else p[1:] for p in parts]
    return parts
