"""Finds the points of a network that no table speaks for: names propose, numbers decide.

Names propose which children of a block are its attention and its MLP, and which maps are their
projections. The network reads two rows, in evaluation mode, and a point is kept only if what
flowed there is what the point means. Blocks that are built alike are judged together, in each of
them; the middle of the stream and attention's insides must also be editable where they were found.
Whatever fails is refused in those blocks, with the reason.

Shapes: L blocks, B batch, T tokens, D width.
"""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import permutations, product
from typing import Any

import torch
from torch import Tensor, nn

from actkit.core.context import ForwardContext
from actkit.core.edit import apply, scale
from actkit.core.sight import Group, Sight, adds_up, is_norm, same, watched
from actkit.core.sites import POINTS, WHOLE, Place, Site, Stack, into, out, stack_sites
from actkit.core.taps import Tap

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
MLP = re.compile(r"mlp|ffn|feed_?forward|moe|^ff$", re.IGNORECASE)
OTHERS = re.compile(r"norm|dropout|embedding", re.IGNORECASE)
PROJECTIONS = {
    "q": ("q_proj", "q", "wq", "query", "q_lin", "to_q"),
    "k": ("k_proj", "k", "wk", "key", "k_lin", "to_k"),
    "v": ("v_proj", "v", "wv", "value", "v_lin", "to_v"),
    "z": ("o_proj", "out_proj", "o", "wo", "dense", "c_proj", "proj", "out_lin", "to_out"),
}
NONLINEAR: tuple[Callable[[Tensor], Tensor], ...] = (
    nn.functional.silu,
    nn.functional.gelu,
    nn.GELU("tanh"),
    nn.functional.relu,
    torch.sigmoid,
    torch.tanh,
)
NO_SUM = "what attention and MLP returned did not add up to what the block returned"
NO_MIX = "no map of it was seen to read each head's mix of values, without a norm or gate between"
REASONS = {
    "embeddings": "no embedding of the token ids was seen",
    **dict.fromkeys(("attn_in", "mlp_in"), "no map inside read what the module as a whole read"),
    **dict.fromkeys("qkv", "no map of it was seen that fits the heads"),
    "z": NO_MIX,
    **dict.fromkeys(("attn_scores", "attn_probs"), "attention is computed where it cannot be read"),
    **dict.fromkeys(("attn_out", "mlp_out"), NO_SUM),
    "resid_mid": "no module received the stream after attention as such",
    **dict.fromkeys(("mlp_pre", "mlp_gate", "mlp_hidden"), "no map in the MLP was seen to be it"),
    "final_norm": "no norm of the last block's output was seen",
    "logits": "the network returned no logits for each token",
}
NO_EXPERTS = "experts are not looked for: read them by module path"
INSIDE = {
    "attention": ("attn_in", "q", "k", "v", "attn_scores", "attn_probs", "z", "attn_out"),
    "MLP": ("mlp_in", "mlp_pre", "mlp_gate", "mlp_hidden", "mlp_out"),
}
"""Points that a block without such a part lacks for that reason."""


def found_stack(network: nn.Module, blocks: str, number: int) -> Stack:
    """Return the stack, with every point checked, of a network that reads ids, images or sound.

    Args:
        network: The network.
        blocks: Path of the blocks, with "{}" where the index goes.
        number: How many they are.

    Raises:
        ValueError: The blocks hand on no (B, T, D) stream from one to the next.
    """
    sight = Sight(network, blocks, number)
    if sight.again:
        raise ValueError("its blocks run more than once in one pass")
    stream, after = _stream(sight)
    proposals = [Proposal(g, stream, after) for g in sight.groups()]
    ends, sizes = _ends(sight, after[-1])
    sizes |= {"blocks": blocks, "num_blocks": number, "width": stream.shape[-1]}
    parts = [Stack(**(sizes | p.sizes), places=ends | p.places) for p in proposals]
    owners = {i: k for k, p in enumerate(proposals) for i in p.group.indices}
    resting = [i for i in range(number) if i not in owners]
    owners |= dict.fromkeys(resting, len(parts))
    if resting:
        silent = type(network.get_submodule(sight.blocks[resting[0]])).__name__
        what = "".join(sight.feed) or "token ids"
        reason = f"this {silent} does not run where the network reads {what} alone"
        parts.append(Stack(**sizes, places={}, lacks=dict.fromkeys(POINTS, reason)))
    firm = _firm(network, _joined(parts, owners), owners)
    parts = [_with(part, firm[k]) for k, part in enumerate(parts)]
    for k, part in enumerate(parts[: len(proposals)]):
        own = [i for i, owner in owners.items() if owner == k]
        if part.attention and not _explicit_form_agrees(network, part, own, after[-1]):
            parts[k] = replace(part, attention="")
    pairs = zip(parts, proposals, strict=False)
    told = [_reasoned(part, proposal) for part, proposal in pairs]
    return _joined([*told, *parts[len(told) :]], owners)


def _stream(sight: Sight) -> tuple[Tensor, Tensor]:
    """Return what the blocks that ran receive and what they return, (L, B, T, D) both."""
    ran = [sight.blocks[i] for i in sight.ran]
    sides = [[sight.value(b, side) for b in ran] for side in ("in", "out")]
    known = [[x for x in side if x is not None] for side in sides]
    rows = len(sight.read)
    told = 2 * len(ran) > len(sight.blocks) and all(
        len(k) == len(ran)
        and {x.shape for x in k} == {k[0].shape}
        and k[0].dim() == 3
        and k[0].is_floating_point()
        and k[0].shape[:2] == (sight.read.shape if sight.ids is not None else k[0].shape[:2])
        and k[0].shape[0] == rows
        for k in known
    )
    stream, after = (torch.stack(k) for k in known) if told else (torch.ones(1), torch.zeros(1))
    if not same(stream[1:], after[:-1]) or not told:
        shapes = ", ".join(dict.fromkeys(str(tuple(x.shape)) for x in known[1])) or "no tensor"
        raise ValueError(
            f"its blocks hand on no (batch, token, width) stream: they return {shapes} where "
            f"{tuple(sight.read.shape)} was read"
        )
    if sight.ids is None:  # nothing read has the stream's length, so its axes are proven apart
        width = getattr(getattr(sight.network, "config", None), "hidden_size", None)
        if stream.shape[-1] != width or stream.shape[-2] == width:
            shape = tuple(stream.shape[1:])
            raise ValueError(f"the last axis of its stream is not its hidden_size {width}: {shape}")
        if not _rows_are_inputs(sight, after[-1]):
            raise ValueError("the rows of its stream are not those of its inputs")
    return stream, after


def _rows_are_inputs(sight: Sight, after: Tensor) -> bool:
    """Say whether the first input alone has the first row of what both have."""
    values: list[Tensor] = []
    last = Site("last", place=Place(sight.blocks[sight.ran[-1]], "out"))
    tap = Tap(last, read=lambda site, x, context: values.append(x.clone()))
    watched(sight.network, [tap], {k: x[:1] for k, x in sight.feed.items()})
    alone, wanted = values[0], after[:1]
    bound = max(1e-3, 8 * torch.finfo(wanted.dtype).eps) * wanted.norm()
    return alone.shape == wanted.shape and bool((alone - wanted).norm() <= bound)


def _ends(sight: Sight, after: Tensor) -> tuple[dict[str, Place], dict[str, Any]]:
    """Find embeddings, final norm and logits, and the sizes that go with them."""
    places: dict[str, Place] = {}
    sizes: dict[str, Any] = {}
    own = _input_embeddings(sight.network)
    words = 0
    for path, module in sight.outer.items():
        x, y = sight.value(path, "in"), sight.value(path, "out")
        # positions may be looked up by the ids too: the network says which it is
        first = "embeddings" not in places or module is own
        if isinstance(module, nn.Embedding) and same(x, sight.ids) and y is not None and first:
            places["embeddings"], words = out(path), module.num_embeddings
            sizes["embedding_width"] = y.shape[-1]
        if is_norm(module) and same(x, after):
            places["final_norm"] = out(path)
    way, logits = sight.logits(words)
    if logits is not None:
        places["logits"] = out("", *way)
        sizes["vocabulary"] = logits.shape[-1]
    changed = {p: sight.overwritten([x.path], x.side) for p, x in places.items()}
    return {p: replace(x, fleeting=changed[p]) for p, x in places.items()}, sizes


def _input_embeddings(network: Any) -> nn.Module | None:
    """Return what the network says its input embeddings are, None if it does not say."""
    try:
        found: nn.Module | None = network.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found


def _joined(parts: list[Stack], owners: Mapping[int, int]) -> Stack:
    """Return one stack of parts that share its blocks; the first speaks for most of them."""
    counts = [list(owners.values()).count(k) for k in range(len(parts))]
    main = counts.index(max(counts))
    others = {i: parts[k] for i, k in owners.items() if k != main}
    return replace(parts[main], others=others)


def _reasoned(part: Stack, proposal: "Proposal") -> Stack:
    """Return a part that says why it lacks what it lacks."""
    reasons = dict.fromkeys(POINTS, NO_EXPERTS) | REASONS | proposal.reasons
    seen = ("attn_scores", "attn_probs") if part.attention else ()
    had = (*part.places, *seen)
    return replace(part, lacks={p: f"by structure: {reasons[p]}" for p in POINTS if p not in had})


class Proposal:
    """Places in blocks that are built alike, which one run does not contradict.

    Attributes:
        group: The blocks.
        places: Point to place.
        sizes: Fields of the stack.
        reasons: Why points are lacking, where more is known than that they were not found.
    """

    def __init__(self, group: Group, stream: Tensor, after: Tensor) -> None:
        """Look at what flowed; `stream` and `after` are of all blocks, (L, B, T, D)."""
        own = [group.sight.ran.index(i) for i in group.indices]
        self.group, self._stream, self._after = group, stream[own], after[own]
        self.reasons: dict[str, str] = {}
        self._attention, self._mlp = self._child(ATTENTION, "attention"), self._child(MLP, "MLP")
        self.sizes: dict[str, Any] = {}
        found = (self._sum(), self._read(), self._heads(), self._inside())
        places = {"resid_pre": into(""), "resid_post": out("")}
        for some in found:
            places |= some
        self.places = {p: replace(x, fleeting=group.overwritten(x)) for p, x in places.items()}

    def _child(self, names: re.Pattern[str], part: str) -> str:
        """Return the one child of a block that goes by such a name; "" unless it is one."""
        kinds = {p: type(m).__name__ for p, m in self.group.children.items()}
        others = [p for p, kind in kinds.items() if OTHERS.search(p) or OTHERS.search(kind)]
        found = [p for p in kinds if names.search(p) and p not in others]
        found = found or [p for p, k in kinds.items() if names.search(k) and p not in others]
        if len(found) == 1:
            return found[0]
        block = type(self.group.block).__name__
        parts = ", ".join(found if found else [p for p in kinds if p not in others]) or "nothing"
        word = f"more than one {part}" if found else f"no {part} by its name"
        self.reasons |= dict.fromkeys(INSIDE[part], f"this {block} has {word} but {parts}")
        self.reasons["resid_mid"] = self.reasons[INSIDE[part][0]]
        return ""

    def _sum(self) -> dict[str, Place]:
        """Find what attention and MLP add to the stream, raw or after a norm, and its middle."""
        sight = self.group
        for a, m in product(self._followed(self._attention), self._followed(self._mlp)):
            attn, mlp = sight(a, "out"), sight(m, "out")
            if adds_up(self._after, self._stream, attn, mlp):
                inputs = ((p, sight(p, "in")) for p in sight.children)
                middle = next((p for p, x in inputs if adds_up(x, self._stream, attn)), None)
                mid = {} if middle is None else {"resid_mid": into(middle, shared=True)}
                return {"attn_out": out(a), **mid, "mlp_out": out(m)}
        return {}

    def _followed(self, child: str) -> list[str]:
        """Return a child of the block and those that read what it returned; none for ""."""
        if not child:
            return []
        returned = self.group(child, "out")
        return [child, *(p for p in self.group.children if same(self.group(p, "in"), returned))]

    def _read(self) -> dict[str, Place]:
        """Find what attention and MLP read, if their maps read the very same."""
        sight, places = self.group, {}
        for point, child in (("attn_in", self._attention), ("mlp_in", self._mlp)):
            x = sight(child, "in") if child else None
            inner = (sight(p, "in") for p in sight.maps(child))
            if x is not None and any(same(y, x) or same(y, x.flatten(1, 2)) for y in inner):
                places[point] = into(child)
        return places

    def _heads(self) -> dict[str, Place]:
        """Find the projections of attention: z by what its map reads, others by their widths."""
        group = self.group
        mix = group.mix(self._attention) if self._attention else None
        if mix is None:
            return {}
        heads, width = mix.shape[2], mix.shape[-1]
        maps = group.maps(self._attention)
        named = {
            point: next((p for p in maps if p.rpartition(".")[2] in names), "")
            for point, names in PROJECTIONS.items()
        }
        self.sizes |= {"heads": heads, "kv_heads": heads, "head_width": width}
        if _in_registry(group.block.get_submodule(self._attention)):
            self.sizes["attention"] = self._attention
        places = {}
        if self._is_last(named["z"]) and same(group(named["z"], "in"), _side_by_side(mix)):
            places["z"] = into(named["z"], heads=heads)
        widths = {p: group.width(named[p], "out") if named[p] else 0 for p in "qkv"}
        kv_heads, rest = divmod(widths["k"], width)
        if widths["v"] == widths["k"] > 0 and not rest and heads % kv_heads == 0:
            self.sizes["kv_heads"] = kv_heads
            places |= {p: out(named[p], heads=kv_heads) for p in "kv"}
            if widths["q"] == heads * width:
                places["q"] = out(named["q"], heads=heads)
        return places

    def _is_last(self, path: str) -> bool:
        """Say whether attention returns what a map inside it returns."""
        returned = self.group(self._attention, "out")
        return bool(path) and same(self.group(path, "out"), returned)

    def _inside(self) -> dict[str, Place]:
        """Find what the MLP's down projection reads, and the maps before it."""
        sight, maps = self.group, self.group.maps(self._mlp)
        x, returned = sight(self._mlp, "in"), sight(self._mlp, "out")
        down = [p for p in maps if same(sight(p, "out"), returned)][-1:]
        hidden = sight(down[0], "in") if down else None
        if hidden is None:
            return {}
        self.sizes["hidden"] = hidden.shape[-1]
        places = {"mlp_hidden": into(down[0])}
        readers = [p for p in maps if p not in down and same(sight(p, "in"), x)]
        if len(readers) == 1 and sight.width(readers[0], "out") == hidden.shape[-1]:
            return places | {"mlp_pre": out(readers[0])}
        known: list[Any] = [*sight.activations(self._mlp), *NONLINEAR]
        for (gate, up), act in product(permutations(readers, 2), known):
            g, u = sight(gate, "out"), sight(up, "out")
            if g is not None and u is not None and _is_product(hidden, act(g), u):
                return places | {"mlp_gate": out(gate), "mlp_pre": out(up)}
        return places


def _side_by_side(mix: Tensor) -> Tensor:
    """Return (L, B, H, T, K) as (L, B, T, H K)."""
    return mix.transpose(2, 3).flatten(3)


def _is_product(hidden: Tensor, gate: Tensor, up: Tensor) -> bool:
    if gate.shape != up.shape or hidden.shape != up.shape:
        return False
    bound = 8 * torch.finfo(hidden.dtype).eps * (gate * up).abs().double()
    return bool(((gate.double() * up.double() - hidden.double()).abs() <= bound).all())


def _in_registry(attention: Any) -> bool:
    """Say whether a module calls its kernel through the registry of transformers."""
    file = sys.modules[type(attention).__module__]
    known = hasattr(file, "ALL_ATTENTION_FUNCTIONS") and hasattr(file, "eager_attention_forward")
    return known and hasattr(getattr(attention, "config", None), "_attn_implementation_internal")


def _with(stack: Stack, points: set[str]) -> Stack:
    """Return a stack that has only some of its points."""
    places = {p: place for p, place in stack.places.items() if p in points}
    seen = {"attn_scores", "attn_probs"} <= points
    return replace(stack, places=places, attention=stack.attention if seen else "")


def _firm(network: nn.Module, stack: Stack, owners: Mapping[int, int]) -> list[set[str]]:
    """Return each part's points of which every site was reached; the middle only if editable."""
    values: dict[str, Tensor] = {}

    def keep(site: Site, x: Tensor, _: ForwardContext) -> None:
        values[site.name] = x.clone()

    sites = [s for s in stack_sites(stack, "") if not s.refused]
    turned = [scale(s.name, -1.0) if s.name.startswith("resid_mid.") else None for s in sites]
    taps = [Tap(s, [e] if e else [], keep) for s, e in zip(sites, turned, strict=True)]
    watched(network, taps)
    found = []
    for k in range(max(owners.values()) + 1):
        own = [i for i, owner in owners.items() if owner == k]
        mine = {s.name for s in sites if s.name in WHOLE or int(s.name.rpartition(".")[2]) in own}
        lost = {name.partition(".")[0] for name in mine if name not in values}
        points = {name.partition(".")[0] for name in mine} - lost
        found.append(points if _turned(values, own) else points - {"resid_mid"})
    return found


def _turned(values: Mapping[str, Tensor], blocks: list[int]) -> bool:
    """Say whether the stream, whose sign was turned in the middle of these blocks, went on so."""

    def of(point: str) -> Tensor | None:
        found = [values.get(f"{point}.{i}") for i in blocks]
        known = [x for x in found if x is not None]
        return torch.stack(known) if len(known) == len(found) else None

    stream, attn = of("resid_pre"), of("attn_out")
    if stream is None or attn is None:
        return False
    return adds_up(of("resid_post"), -stream, -attn, of("mlp_out"))


def _explicit_form_agrees(
    network: nn.Module, part: Stack, blocks: list[int], wanted: Tensor
) -> bool:
    """Say whether attention computed from what was read is what the kernel computes."""
    values: list[Tensor] = []
    sites = {s.name: s for s in stack_sites(part, "") if not s.refused}
    probs = [sites[f"attn_probs.{i}"] for i in blocks]
    taps = [Tap(s, [apply(s.name, torch.clone)]) for s in probs]
    last = sites[f"resid_post.{part.num_blocks - 1}"]
    watched(network, [*taps, Tap(last, read=lambda site, x, context: values.append(x.clone()))])
    tolerance = max(1e-4, 8 * torch.finfo(wanted.dtype).eps)
    return bool((values[0] - wanted).norm() <= tolerance * wanted.norm())
