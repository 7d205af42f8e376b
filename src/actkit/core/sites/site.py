"""Points as data: what a network offers, by name, and what it lacks, with the reason.

A point is a kind of place (`resid_post`), a site is one such place (`resid_post.10`). An
architecture's table says for each stack of blocks where the points lie; any other place is
addressed by its module's path, `layer4.0.conv1:out`, with `:in` or `:out`, then `.i` for an item
of a tuple and `#n` for the n-th call of a module that runs several times. Without `#n` an edit acts
on all calls, and a recording is refused if there were several.

What the points mean, in every architecture that has them:

- `embeddings`: what the token embedding (of images, the patch embedding) returns.
- `resid_pre`, `resid_mid`, `resid_post`: the residual stream as a block receives it, after
  attention, and as the block returns it.
- `attn_in`, `mlp_in`: what attention and MLP read, after the norm before them, if there is one.
- `q`, `k`, `v`: what the projections return, split in heads; before norms of queries and keys and
  before rotary embedding. Keys and values keep their own number of heads.
- `attn_scores`: the softmax's logits in float32, with scale, soft cap, bias and mask.
- `attn_probs`: the softmax over keys.
- `z`: each head's mix of values, before the output projection.
- `attn_out`, `mlp_out`: what is added to the residual stream, after any norm or factor.
- `mlp_pre`: what the up projection returns; without a gate, what the nonlinearity reads.
- `mlp_gate`: what the gate's projection returns, before the nonlinearity.
- `mlp_hidden`: what the down projection reads.
- `router_logits`, `router_weights`, `expert_hidden`: a router's logits over all experts, the
  weights of a token's chosen experts, and what the down projection of each of these reads.
- `final_norm`: what the norm after the last block returns; `logits`: what the network returns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

from torch import Tensor

from actkit.core.errors import SiteError
from actkit.core.sites.axes import Axes
from actkit.core.sites.layout import PLAIN, Layout

POINTS = (
    "embeddings",
    "resid_pre",
    "attn_in",
    "q",
    "k",
    "v",
    "attn_scores",
    "attn_probs",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_pre",
    "mlp_gate",
    "mlp_hidden",
    "router_logits",
    "router_weights",
    "expert_hidden",
    "mlp_out",
    "resid_post",
    "final_norm",
    "logits",
)
"""The vocabulary, in the order in which a forward pass meets it."""

WHOLE = ("embeddings", "final_norm", "logits")
"""Points that a stack has once, not once a block."""

MOST_LINES = 60
"""How many lines a printed list of sites has at most."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which tensor of which module: its path, its side, and the view that is the point.

    Args:
        path: The module's path, relative to the block (or to the stack, for `WHOLE` points).
        side: "in" or "out"; "scores", "probs", "router" and "experts" are computed beside it.
        item: Index into a tuple, or field of a mapping, that the module returns; a chain of them.
        layout: The view.
        is_stream: The tensor is also the residual stream itself, so an edit writes into it.
        call: Which call of the module in one forward pass; None is every call.
        overwritten: The network overwrites the tensor later, so a reading is a copy.
    """

    path: str
    side: str
    item: tuple[int | str, ...] = ()
    layout: Layout = PLAIN
    is_stream: bool = False
    call: int | None = None
    overwritten: bool = False


def out(path: str, *item: int | str, **view: Any) -> Place:
    """Return the place of a module's output; `view` are fields of `Layout`."""
    return Place(path, "out", item, Layout(**view))


def into(path: str, *, is_stream: bool = False, **view: Any) -> Place:
    """Return the place of a module's first input."""
    return Place(path, "in", (), Layout(**view), is_stream)


@dataclass(frozen=True)
class Stack:
    """One stack of blocks and where its points are.

    Args:
        blocks: Path of the blocks below the stack's root, with "{}" where the index goes; the
            path up to it must be a list of modules.
        num_blocks: Number of blocks.
        width: Width of the residual stream.
        places: Point to place; block paths are relative to the block.
        lacks: Point to the reason why this architecture does not have it; beats `places`.
        heads: Attention heads; 0 if there is no attention.
        kv_heads: Heads of keys and values.
        head_width: Width of one head.
        hidden: Width inside the MLP.
        experts: Number of experts, and how many of them each token uses.
        expert_width: Width inside an expert, 0 if it is `hidden`.
        attention: Path of the module that calls the attention kernel, relative to the block.
        name: Prefix of the stack's sites ("encoder", "vision"); "" is the main stack.
        root: Path of the stack's module below the network's base model.
        shared_blocks: Blocks are one module called again and again, as in ALBERT.
        vocabulary: Size of the vocabulary, 0 without an output head.
        alias: A prefix that users may write although there is one stack ("encoder").
        embedding_width: Width of the embeddings, 0 if it is that of the stream.
        others: Blocks that are built differently from the rest, by index.
        frames: The network's own rule from lengths of its inputs to numbers of rows, for a stack
            whose mask speaks of other units (sound); called with the stack's module.
    """

    blocks: str
    num_blocks: int
    width: int
    places: Mapping[str, Place]
    lacks: Mapping[str, str] = field(default_factory=dict)
    heads: int = 0
    kv_heads: int = 0
    head_width: int = 0
    hidden: int = 0
    experts: tuple[int, int] = (0, 0)
    attention: str = ""
    name: str = ""
    root: str = ""
    shared_blocks: bool = False
    vocabulary: int = 0
    alias: str = ""
    embedding_width: int = 0
    others: Mapping[int, "Stack"] = field(default_factory=dict)
    frames: Callable[[Any, Tensor], Tensor] | None = None
    expert_width: int = 0

    def unit_shape(self, point: str) -> tuple[int, ...]:
        """Return the shape of one row at a point: (D,), (H, K), (hidden,), ..."""
        if point in ("q", "z"):
            return (self.heads, self.head_width)
        if point in ("k", "v"):
            return (self.kv_heads, self.head_width)
        if point in ("mlp_pre", "mlp_gate", "mlp_hidden"):
            return (self.hidden,)
        special = {
            "embeddings": (self.embedding_width or self.width,),
            "router_logits": (self.experts[0],),
            "router_weights": (self.experts[1],),
            "expert_hidden": (self.experts[1], self.expert_width or self.hidden),
            "logits": (self.vocabulary,),
        }
        return special.get(point, (self.width,))


@dataclass(frozen=True)
class Site:
    """A named place where a tensor flows.

    Attributes:
        name: As used in `record`, edits and readings.
        shape: Axes of the tensor, for example ("batch", "token", 576); None if only a run tells.
        where: The module's path and side; for what is computed beside a module, its path.
        refused: Why this network lacks the site; "" if it has it.
        point: Its kind of place, "resid_post"; "" for a module path.
        layer: Its block; None where a stack has the point once, and for a module path.
        head: Its one head, None for all of them.
        known: What is known of the axes of a module's tensor before it is seen.
        others: Other paths of the site's module, if it is registered under several.
    """

    name: str
    shape: tuple[str | int, ...] | None = None
    where: str = ""
    refused: str = ""
    place: Place = field(default=Place("", "out"), repr=False)
    stack: Stack | None = field(default=None, repr=False)
    head: int | None = None
    point: str = ""
    layer: int | None = None

    def __repr__(self) -> str:
        """Return one line: name, axes and where it is, or why it is refused."""
        return f"Site({self.name}: {self.summary()})"

    def summary(self) -> str:
        """Return axes and place, or why the network lacks it."""
        told = _axes(self)
        return told if self.where in ("", self.name) else f"{told} at {self.where}"

    @property
    def canonical(self) -> str:
        """Return actkit's own name of the site, whatever alias it was asked for by."""
        if not self.point:
            return self.name
        stack = self.stack.name if self.stack is not None else ""
        parts = (stack, self.point, self.layer, self.head)
        return ".".join(str(part) for part in parts if part not in ("", None))

    @property
    def depth(self) -> int:
        """Return the layer of a site that stands in one.

        Raises:
            SiteError: Its stack has it once, or it is a module path.
        """
        if self.layer is None:
            raise SiteError(f"{self.name} stands in no layer")
        return self.layer

    known: Axes | None = field(default=None, repr=False)
    others: tuple[str, ...] = field(default=(), repr=False)

    def axes_of(self, x: Tensor) -> str:
        """Return the axes' letters of a tensor that was met at the site.

        Raises:
            SiteError: Nothing tells which axis is which.
        """
        return self.axes or (self.known or Axes(self.name)).of(x)

    @property
    def axes(self) -> str:
        """Return the axes' letters: BTD, BTHK, BHTS; "" if only a run tells."""
        if self.place.side in ("scores", "probs"):
            return "BHTS" if self.head is None else "BTS"
        if self.shape is None:
            return ""
        return "BTD" if len(self.shape) == 3 else "BTHK"

    @property
    def unit_shape(self) -> tuple[int, ...] | None:
        """Return the shape of one row, None if only a run tells."""
        if self.shape is None or "S" in self.axes:
            return None
        return tuple(n for n in self.shape if isinstance(n, int))


class Sites(list[Site]):
    """A list of sites that prints as a table, a point a line."""

    def __repr__(self) -> str:
        """Return the number of sites, then for each point its first and last site and its axes."""
        lines = [f"  {names}  {axes}" for names, axes in self._aligned()]
        return "\n".join([f"{len(self)} site{'s' * (len(self) != 1)}", *lines])

    def _repr_html_(self) -> str:
        """Return the same table for a notebook."""
        cells = "".join(
            f"<tr><td>{escape(names)}</td><td>{escape(axes)}</td></tr>"
            for names, axes in self._rows()
        )
        return f"<table><tr><th>{len(self)} sites</th><th>axes</th></tr>{cells}</table>"

    def _rows(self) -> list[tuple[str, str]]:
        """Return what is said of each point: names, and axes or the reason of a refusal."""
        groups: dict[tuple[Any, ...], list[Site]] = {}
        for site in self:
            key = (site.stack and site.stack.name, site.point or site.name, site.shape)
            groups.setdefault((*key, site.refused, site.head), []).append(site)
        rows = [(_span(own), _axes(own[0])) for own in groups.values()]
        hidden = len(rows) - MOST_LINES
        return rows if hidden <= 0 else [*rows[:MOST_LINES], (f"and {hidden} more", "")]

    def _aligned(self) -> list[tuple[str, str]]:
        rows = self._rows()
        width = max((len(names) for names, _ in rows), default=0)
        return [(names.ljust(width), axes) for names, axes in rows]


def _span(sites: Sequence[Site]) -> str:
    first, last = sites[0].name, sites[-1].name
    return first if len(sites) == 1 else f"{first} to {last} ({len(sites)})"


def _axes(site: Site) -> str:
    if site.refused:
        return f"refused: {site.refused}"
    return "axes as in the run" if site.shape is None else f"({', '.join(map(str, site.shape))})"


def stack_sites(stack: Stack, base: str) -> list[Site]:
    """Return all sites of one stack, refused ones included, in the order of a forward pass.

    Args:
        stack: The stack.
        base: Path of the network's base model, "" or ending with a dot.
    """
    root = f"{base}{stack.root}".rstrip(".")
    prefix = f"{stack.name}." if stack.name else ""
    before, after = POINTS[:1], POINTS[-2:]
    sites = [_site(stack, f"{prefix}{p}", p, root, None) for p in before]
    for i in range(stack.num_blocks):
        block = ".".join(filter(None, (root, stack.blocks.format(i))))
        own = stack.others.get(i, stack)
        sites += [_site(own, f"{prefix}{p}.{i}", p, block, i) for p in POINTS if p not in WHOLE]
    return sites + [_site(stack, f"{prefix}{p}", p, root, None) for p in after]


def _site(stack: Stack, name: str, point: str, module: str, block: int | None) -> Site:
    place = _attention_place(stack, point) or stack.places.get(point)
    if place is None or point in stack.lacks:
        reason = stack.lacks.get(point, _reason(stack, point))
        return Site(name, refused=reason, stack=stack, point=point, layer=block)
    if point == "logits":
        module = ""
    path = ".".join(filter(None, (module, place.path)))
    call = block if stack.shared_blocks and block is not None else place.call
    shape: tuple[str | int, ...] = ("batch", "token", *stack.unit_shape(point))
    if place.side in ("scores", "probs"):
        shape = ("batch", stack.heads, "token", "key")
    place = replace(place, path=path, call=call)
    return Site(name, shape, _address(place), "", place, stack, point=point, layer=block)


def _address(place: Place) -> str:
    """Return the place as users may write it; what is computed beside a module has none."""
    if place.side not in ("in", "out"):
        return f"beside {place.path}"
    items = "".join(f".{item}" for item in place.item)
    return f"{place.path}:{place.side}{items}" + ("" if place.call is None else f"#{place.call}")


def _attention_place(stack: Stack, point: str) -> Place | None:
    if point in ("attn_scores", "attn_probs") and stack.attention:
        return Place(stack.attention, point.removeprefix("attn_"))
    return None


def _reason(stack: Stack, point: str) -> str:
    if point in ("router_logits", "router_weights", "expert_hidden"):
        return "the MLP of this architecture has no experts"
    if point == "mlp_gate":
        return "the MLP of this architecture has no gate"
    if point == "logits":
        return f"the {stack.name or 'network'} has no output head that returns logits"
    return "this architecture's table has no such point"
