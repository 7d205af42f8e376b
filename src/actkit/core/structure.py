"""Finds the points of a decoder that no table speaks for: names propose, numbers decide.

Names propose which children of a block are its attention and its MLP, and which maps are their
projections. The network reads two rows of tokens, in evaluation mode, and a point is kept only if
what flowed there is what the point means, in every block; the middle of the stream and attention's
insides must also be editable where they were found. Whatever fails is refused, with the reason.

Shapes: L blocks, B batch, T tokens, D width.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product
from typing import Any

import torch
from torch import Tensor, nn

from actkit.core.context import ForwardContext
from actkit.core.edit import apply, scale
from actkit.core.errors import SiteError
from actkit.core.sight import Sight, adds_up, is_norm, same, watched
from actkit.core.sites import POINTS, Place, Site, Stack, into, out, stack_sites
from actkit.core.taps import Tap

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
MLP = re.compile(r"mlp|ffn|feed_?forward|moe|^ff$", re.IGNORECASE)
OTHERS = re.compile(r"norm|dropout|embedding", re.IGNORECASE)
HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "heads")
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
REASONS = {
    "embeddings": "no embedding of the token ids was seen",
    **dict.fromkeys(("attn_in", "mlp_in"), "no map inside read what the module as a whole read"),
    **dict.fromkeys("qkvz", "no map of it was seen that fits the number of heads in the config"),
    **dict.fromkeys(("attn_scores", "attn_probs"), "attention is computed where it cannot be read"),
    **dict.fromkeys(("attn_out", "mlp_out"), NO_SUM),
    "resid_mid": "no module received the stream after attention as such",
    **dict.fromkeys(("mlp_pre", "mlp_gate", "mlp_hidden"), "no map in the MLP was seen to be it"),
    "final_norm": "no norm of the last block's output was seen",
    "logits": "the network returned no logits for each token",
}
NO_EXPERTS = "experts are not looked for: read them by module path"


def found_stack(network: nn.Module, blocks: str, number: int) -> Stack:
    """Return the stack, with every point checked, of a network that takes token ids.

    Args:
        network: The network.
        blocks: Path of the blocks, with "{}" where the index goes.
        number: How many they are.

    Raises:
        ValueError: The blocks hand on no (B, T, D) stream from one to the next.
    """
    proposal = Proposal(Sight(network, blocks, number))
    stack = Stack(blocks, number, places=proposal.places, **proposal.sizes)
    try:
        firm = _firm(network, stack)
    except SiteError:  # the kernel returns something else than what was read beside it gives
        stack = replace(stack, attention="")
        firm = _firm(network, stack)
    stack = _with(stack, firm)
    if stack.attention and not _explicit_form_agrees(network, stack, proposal.after[-1]):
        stack = replace(stack, attention="")
    lacks = {p: f"by structure: {REASONS.get(p, NO_EXPERTS)}" for p in POINTS}
    seen = ("attn_scores", "attn_probs") if stack.attention else ()
    return replace(stack, lacks={p: r for p, r in lacks.items() if p not in (*stack.places, *seen)})


class Proposal:
    """Places that one run does not contradict, and the sizes that go with them.

    Attributes:
        places: Point to place.
        sizes: Fields of the stack.
        after: What each block returned, (L, B, T, D).
    """

    def __init__(self, sight: Sight) -> None:
        """Look at what flowed."""
        stream, after = sight("", "in"), sight("", "out")
        told = stream is not None and stream.dim() == 4 and stream.shape[1:3] == sight.ids.shape
        if stream is None or after is None or not told or not same(stream[1:], after[:-1]):
            raise ValueError("its blocks hand on no (batch, token, width) stream")
        self._sight, self._stream, self.after = sight, stream, after
        self._attention, self._mlp = self._child(ATTENTION), self._child(MLP)
        self.sizes: dict[str, Any] = {"width": stream.shape[-1]}
        found = (self._ends(), self._sum(), self._read(), self._heads(), self._inside())
        places = {"resid_pre": into(""), "resid_post": out("")}
        for some in found:
            places |= some
        self.places = {p: replace(x, fleeting=sight.fleeting(x)) for p, x in places.items()}

    def _child(self, names: re.Pattern[str]) -> str:
        """Return the one child of a block that goes by such a name; "" unless it is one."""
        kinds = {p: type(m).__name__ for p, m in self._sight.children.items()}
        others = [p for p, kind in kinds.items() if OTHERS.search(p) or OTHERS.search(kind)]
        found = [p for p in kinds if names.search(p) and p not in others]
        found = found or [p for p, k in kinds.items() if names.search(k) and p not in others]
        return found[0] if len(found) == 1 else ""

    def _ends(self) -> dict[str, Place]:
        """Find embeddings, final norm and logits."""
        sight, words = self._sight, 0
        places: dict[str, Place] = {}
        for path, module in sight.outer.items():
            x, y = sight.outside(path, "in"), sight.outside(path, "out")
            if isinstance(module, nn.Embedding) and same(x, sight.ids) and y is not None:
                places["embeddings"], words = out(path), module.num_embeddings
                self.sizes["embedding_width"] = y.shape[-1]
            if is_norm(module) and same(x, self.after[-1]):
                places["final_norm"] = out(path)
        way, logits = sight.logits(words)
        if logits is not None:
            places["logits"] = out("", *way)
            self.sizes["vocabulary"] = logits.shape[-1]
        return places

    def _sum(self) -> dict[str, Place]:
        """Find what attention and MLP add to the stream, raw or after a norm, and its middle."""
        sight = self._sight
        for a, m in product(self._followed(self._attention), self._followed(self._mlp)):
            attn, mlp = sight(a, "out"), sight(m, "out")
            if adds_up(self.after, self._stream, attn, mlp):
                inputs = ((p, sight(p, "in")) for p in sight.children)
                middle = next((p for p, x in inputs if adds_up(x, self._stream, attn)), None)
                mid = {} if middle is None else {"resid_mid": into(middle, shared=True)}
                return {"attn_out": out(a), **mid, "mlp_out": out(m)}
        return {}

    def _followed(self, child: str) -> list[str]:
        """Return a child of the block and those that read what it returned; none for ""."""
        if not child:
            return []
        returned = self._sight(child, "out")
        return [child, *(p for p in self._sight.children if same(self._sight(p, "in"), returned))]

    def _read(self) -> dict[str, Place]:
        """Find what attention and MLP read, if their maps read the very same."""
        sight, places = self._sight, {}
        for point, child in (("attn_in", self._attention), ("mlp_in", self._mlp)):
            x = sight(child, "in") if child else None
            inner = (sight(p, "in") for p in sight.maps(child))
            if x is not None and any(same(y, x) or same(y, x.flatten(1, 2)) for y in inner):
                places[point] = into(child)
        return places

    def _heads(self) -> dict[str, Place]:
        """Find the projections of attention, by their names and by their widths."""
        sight, places = self._sight, {}
        maps = sight.maps(self._attention)
        heads = _num_heads(sight, self._attention)
        named = {
            point: next((p for p in maps if p.rpartition(".")[2] in names), "")
            for point, names in PROJECTIONS.items()
        }
        sides = dict.fromkeys("qkv", "out") | {"z": "in"}
        widths = {p: sight.width(path, sides[p]) if path else 0 for p, path in named.items()}
        whole = named["z"] and same(sight(named["z"], "out"), sight(self._attention, "out"))
        if not (heads and whole and widths["z"] % heads == 0):
            return {}
        width = widths["z"] // heads
        kv_heads, rest = divmod(widths["k"], width)
        places["z"] = into(named["z"], heads=heads)
        self.sizes |= {"heads": heads, "kv_heads": kv_heads or heads, "head_width": width}
        if _in_registry(sight.block.get_submodule(self._attention)):
            self.sizes["attention"] = self._attention
        if widths["q"] == widths["z"] and widths["v"] == widths["k"] > 0 and not rest:
            places["q"] = out(named["q"], heads=heads)
            places |= {p: out(named[p], heads=kv_heads) for p in "kv"}
        return places

    def _inside(self) -> dict[str, Place]:
        """Find what the MLP's down projection reads, and the maps before it."""
        sight, maps = self._sight, self._sight.maps(self._mlp)
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


def _is_product(hidden: Tensor, gate: Tensor, up: Tensor) -> bool:
    if gate.shape != up.shape or hidden.shape != up.shape:
        return False
    bound = 8 * torch.finfo(hidden.dtype).eps * (gate * up).abs().double()
    return bool(((gate.double() * up.double() - hidden.double()).abs() <= bound).all())


def _num_heads(sight: Sight, attention: str) -> int:
    """Return the number of heads that the config, or else attention itself, tells; 0 if none."""
    config: Any = getattr(sight.network, "config", None)
    reader = getattr(config, "get_text_config", None)
    sources = (reader() if callable(reader) else config, sight.block.get_submodule(attention))
    told = (getattr(source, name, None) for source in sources for name in HEADS)
    return next((n for n in told if isinstance(n, int)), 0)


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


def _firm(network: nn.Module, stack: Stack) -> set[str]:
    """Return the points whose every site was reached; the middle only if it could be edited."""
    values: dict[str, Tensor] = {}

    def keep(site: Site, x: Tensor, _: ForwardContext) -> None:
        values[site.name] = x.clone()

    sites = [s for s in stack_sites(stack, "") if not s.refused]
    turned = [scale(s.name, -1.0) if s.name.startswith("resid_mid.") else None for s in sites]
    taps = [Tap(s, [e] if e else [], keep) for s, e in zip(sites, turned, strict=True)]
    watched(network, taps)
    lost = {s.name.partition(".")[0] for s in sites if s.name not in values}
    points = {s.name.partition(".")[0] for s in sites} - lost
    return points if _turned(values, stack) else points - {"resid_mid"}


def _turned(values: dict[str, Tensor], stack: Stack) -> bool:
    """Say whether the stream, whose sign was turned in the middle of every block, went on so."""

    def of(point: str) -> Tensor | None:
        found = [values.get(f"{point}.{i}") for i in range(stack.num_blocks)]
        known = [x for x in found if x is not None]
        return torch.stack(known) if len(known) == len(found) else None

    stream, attn = of("resid_pre"), of("attn_out")
    if stream is None or attn is None:
        return False
    return adds_up(of("resid_post"), -stream, -attn, of("mlp_out"))


def _explicit_form_agrees(network: nn.Module, stack: Stack, wanted: Tensor) -> bool:
    """Say whether attention computed from what was read is what the kernel computes."""
    values: list[Tensor] = []
    sites = {s.name: s for s in stack_sites(stack, "") if not s.refused}
    probs = [s for name, s in sites.items() if name.startswith("attn_probs.")]
    taps = [Tap(s, [apply(s.name, torch.clone)]) for s in probs]
    last = sites[f"resid_post.{stack.num_blocks - 1}"]
    watched(network, [*taps, Tap(last, read=lambda site, x, context: values.append(x.clone()))])
    tolerance = max(1e-4, 8 * torch.finfo(wanted.dtype).eps)
    return bool((values[0] - wanted).norm() <= tolerance * wanted.norm())
