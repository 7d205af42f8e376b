"""Proposes where the points of some blocks are, by names and by what flowed in one run.

Shapes: L blocks, B batch, T tokens, H heads, K head width, D width.
"""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import permutations, product
from typing import Any

import torch
from torch import Tensor, nn

from actkit.core.sites.dry_run import Group, adds_up, same
from actkit.core.sites.site import Place, into, out

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
INSIDE = {
    "attention": ("attn_in", "q", "k", "v", "attn_scores", "attn_probs", "z", "attn_out"),
    "MLP": ("mlp_in", "mlp_pre", "mlp_gate", "mlp_hidden", "mlp_out"),
}
"""Points that a block without such a part lacks for that reason."""


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
        own = [group.dry_run.ran.index(i) for i in group.indices]
        self.group, self._stream, self._after = group, stream[own], after[own]
        self.reasons: dict[str, str] = {}
        self._attention, self._mlp = self._child(ATTENTION, "attention"), self._child(MLP, "MLP")
        self.sizes: dict[str, Any] = {}
        found = (self._sum(), self._read(), self._heads(), self._inside())
        places = {"resid_pre": into(""), "resid_post": out("")}
        for some in found:
            places |= some
        self.places = {p: replace(x, overwritten=group.overwritten(x)) for p, x in places.items()}

    def _child(self, names: re.Pattern[str], part: str) -> str:
        """Return the one child of a block that goes by such a name; "" unless it is one."""
        kinds = {p: type(m).__name__ for p, m in self.group.children.items()}
        likely = {
            p: kind for p, kind in kinds.items() if not (OTHERS.search(p) or OTHERS.search(kind))
        }
        found = [p for p in likely if names.search(p)]
        # the class's name speaks where the child's own does not
        found = found or [p for p, kind in likely.items() if names.search(kind)]
        if len(found) == 1:
            return found[0]
        self._lack(part, found, list(likely))
        return ""

    def _lack(self, part: str, found: list[str], likely: list[str]) -> None:
        """Keep the reason why a part of the block was not found: none or several by its name."""
        block = type(self.group.block).__name__
        parts = ", ".join(found or likely) or "nothing"
        word = f"more than one {part}" if found else f"no {part} by its name"
        self.reasons |= dict.fromkeys(INSIDE[part], f"this {block} has {word} but {parts}")
        self.reasons["resid_mid"] = self.reasons[INSIDE[part][0]]

    def _sum(self) -> dict[str, Place]:
        """Find what attention and MLP add to the stream, raw or after a norm, and its middle."""
        dry_run = self.group
        for a, m in product(self._followed(self._attention), self._followed(self._mlp)):
            attn, mlp = dry_run(a, "out"), dry_run(m, "out")
            if adds_up(self._after, self._stream, attn, mlp):
                inputs = ((p, dry_run(p, "in")) for p in dry_run.children)
                middle = next((p for p, x in inputs if adds_up(x, self._stream, attn)), None)
                mid = {} if middle is None else {"resid_mid": into(middle, is_stream=True)}
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
        dry_run, places = self.group, {}
        for point, child in (("attn_in", self._attention), ("mlp_in", self._mlp)):
            x = dry_run(child, "in") if child else None
            if x is not None and x.shape != self._stream.shape:
                self.reasons[point] = (
                    f"it reads {tuple(x.shape[1:])}, which is not the stream's shape"
                )
                continue
            inner = (dry_run(p, "in") for p in dry_run.maps(child))
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
        named = self._projections()
        self.sizes |= {"heads": heads, "kv_heads": heads, "head_width": width}
        if _in_registry(group.block.get_submodule(self._attention)):
            self.sizes["attention"] = self._attention
        places = {}
        if self._is_last(named["z"]) and same(group(named["z"], "in"), _side_by_side(mix)):
            places["z"] = into(named["z"], heads=heads)
        return places | self._queries_keys_values(named, heads, width)

    def _projections(self) -> dict[str, str]:
        """Return the path of each of attention's maps by the point that it goes with, or ""."""
        maps = self.group.maps(self._attention)
        return {
            point: next((p for p in maps if p.rpartition(".")[2] in names), "")
            for point, names in PROJECTIONS.items()
        }

    def _queries_keys_values(
        self, named: Mapping[str, str], heads: int, width: int
    ) -> dict[str, Place]:
        """Find q, k and v among attention's maps by how many heads of a width they return."""
        widths = {p: self.group.width(named[p], "out") if named[p] else 0 for p in "qkv"}
        kv_heads, rest = divmod(widths["k"], width)
        if widths["k"] == 0 or widths["v"] != widths["k"]:
            return {}
        if rest or heads % kv_heads != 0:
            return {}
        self.sizes["kv_heads"] = kv_heads
        places = {p: out(named[p], heads=kv_heads) for p in "kv"}
        if widths["q"] == heads * width:
            places["q"] = out(named["q"], heads=heads)
        return places

    def _is_last(self, path: str) -> bool:
        """Say whether attention returns what a map inside it returns."""
        returned = self.group(self._attention, "out")
        return bool(path) and same(self.group(path, "out"), returned)

    def _inside(self) -> dict[str, Place]:
        """Find what the MLP's down projection reads, and the maps before it."""
        dry_run, maps = self.group, self.group.maps(self._mlp)
        x, returned = dry_run(self._mlp, "in"), dry_run(self._mlp, "out")
        down = [p for p in maps if same(dry_run(p, "out"), returned)][-1:]
        hidden = dry_run(down[0], "in") if down else None
        if hidden is None:
            return {}
        self.sizes["hidden"] = hidden.shape[-1]
        places = {"mlp_hidden": into(down[0])}
        readers = [p for p in maps if p not in down and same(dry_run(p, "in"), x)]
        if len(readers) == 1 and dry_run.width(readers[0], "out") == hidden.shape[-1]:
            return places | {"mlp_pre": out(readers[0])}
        return places | self._gated(hidden, readers)

    def _gated(self, hidden: Tensor, readers: list[str]) -> dict[str, Place]:
        """Find the two maps whose outputs, one of them activated, multiply to the hidden values."""
        known: list[Any] = [*self.group.activations(self._mlp), *NONLINEAR]
        for (gate, up), act in product(permutations(readers, 2), known):
            g, u = self.group(gate, "out"), self.group(up, "out")
            if g is not None and u is not None and _is_product(hidden, act(g), u):
                return {"mlp_gate": out(gate), "mlp_pre": out(up)}
        return {}


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
