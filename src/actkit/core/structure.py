"""Finds the points of a decoder that no table speaks for: names propose, numbers decide.

Names propose which children of a block are its attention and its MLP, and which maps are their
projections. The network reads two rows of tokens, in evaluation mode, and a point is kept only if
what flowed there is what the point means, in every block; the middle of the stream and attention's
insides must also be editable where they were found. Whatever fails is refused, with the reason.

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

from actkit.core.edit import Edit, add, apply
from actkit.core.sight import Sight, adds_up, is_map, is_norm, same, watched
from actkit.core.sites import POINTS, Place, Stack, into, out, stack_sites
from actkit.core.taps import Tap

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
MLP = re.compile(r"mlp|ffn|feed_?forward|moe|^ff$", re.IGNORECASE)
OTHERS = re.compile(r"norm|dropout|embedding", re.IGNORECASE)
HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads")
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
REASONS = {
    "embeddings": "no embedding of the token ids was seen",
    **dict.fromkeys(("attn_in", "mlp_in"), "the projections did not read what their module reads"),
    **dict.fromkeys("qkvz", "no map of it was found that fits the number of heads in the config"),
    **dict.fromkeys(("attn_scores", "attn_probs"), "attention is computed where it cannot be read"),
    "attn_out": "what attention and MLP returned did not add up to what the block returned",
    "mlp_out": "what attention and MLP returned did not add up to what the block returned",
    "resid_mid": "no module received the stream after attention as such",
    **dict.fromkeys(("mlp_pre", "mlp_gate", "mlp_hidden"), "its maps could not be told apart"),
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
    proposed = Proposal(Sight(network, blocks, number))
    stack = Stack(blocks, number, places=proposed.places, **proposed.sizes)
    stack = _without(stack, _contradicted(network, stack))
    if stack.attention and not _explicit_form_agrees(network, stack, proposed.after):
        stack = replace(stack, attention="")
    return stack


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
        if stream is None or after is None or stream.dim() != 4 or not same(stream[1:], after[:-1]):
            raise ValueError("its blocks hand on no (batch, token, width) stream")
        self._sight, self._stream, self.after = sight, stream, after
        self._attention, self._mlp = self._child(ATTENTION), self._child(MLP)
        self.sizes: dict[str, Any] = {"width": stream.shape[-1]}
        places = {
            "resid_pre": into(""),
            "resid_post": out(""),
            **self._ends(),
            **self._sum(),
            **self._heads(),
            **self._inside(),
        }
        self.places = {p: replace(x, fleeting=sight.fleeting(x)) for p, x in places.items()}

    def _child(self, names: re.Pattern[str]) -> str | None:
        """Return the one child of a block that goes by such a name, None unless it is one."""
        named = {p: f"{p} {type(m).__name__}" for p, m in self._sight.children().items()}
        found = [p for p, n in named.items() if names.search(n) and not OTHERS.search(n)]
        return found[0] if len(found) == 1 else None

    def _ends(self) -> dict[str, Place]:
        """Find embeddings, final norm and logits."""
        sight, places = self._sight, {}
        words = 0
        for path, module in sight.outer.items():
            x, y = sight.outside(path, "in"), sight.outside(path, "out")
            if isinstance(module, nn.Embedding) and same(x, sight.ids) and y is not None:
                places["embeddings"], words = out(path), module.num_embeddings
                self.sizes["embedding_width"] = y.shape[-1]
            if is_norm(module) and same(x, self.after[-1]):
                places["final_norm"] = out(path)
        for way in (("logits",), (), (0,)):
            logits = _item(sight.output, way)
            if logits is not None and logits.shape[:2] == sight.ids.shape and logits.dim() == 3:
                if way == ("logits",) or logits.shape[2] == words:
                    places["logits"] = out("", *way)
                    self.sizes["vocabulary"] = logits.shape[2]
                    break
        return places

    def _sum(self) -> dict[str, Place]:
        """Find what attention and MLP add to the stream, raw or after a norm, and its middle."""
        sight = self._sight
        for a, m in product(self._follow(self._attention), self._follow(self._mlp)):
            attn, mlp = sight(a, "out"), sight(m, "out")
            if attn is None or not adds_up(self.after, self._stream, attn, mlp):
                continue
            places = {"attn_out": out(a), "mlp_out": out(m)}
            for path in sight.children():
                if adds_up(sight(path, "in"), self._stream, attn):
                    return places | {"resid_mid": into(path, shared=True)}
            return places
        return {}

    def _follow(self, child: str | None) -> list[str]:
        """Return a child of the block and those that read what it returned."""
        if child is None:
            return []
        returned = self._sight(child, "out")
        readers = [p for p in self._sight.children() if same(self._sight(p, "in"), returned)]
        return [child, *readers]

    def _heads(self) -> dict[str, Place]:
        """Find attention's input and the projections, by names and by widths."""
        if self._attention is None:
            return {}
        sight, attention = self._sight, self._attention
        maps = sight.maps(attention)
        places = self._read(attention, "attn_in")
        named = {
            point: found[0]
            for point, names in PROJECTIONS.items()
            if len(found := [p for p in maps if p.rpartition(".")[2] in names]) == 1
        }
        heads = _num_heads(sight.network, sight.block.get_submodule(attention))
        wide = {p: _width(sight(path, "in" if p == "z" else "out")) for p, path in named.items()}
        if not same(sight(named.get("z", ""), "out"), sight(attention, "out")):
            wide.pop("z", None)
        if not heads or "z" not in wide or wide["z"] % heads:
            return places
        width = wide["z"] // heads
        self.sizes |= {"heads": heads, "kv_heads": heads, "head_width": width}
        if _in_registry(sight.block.get_submodule(attention)):
            self.sizes["attention"] = attention
        places["z"] = into(named["z"], heads=heads)
        kv_heads, rest = divmod(wide.get("k", 0), width)
        if wide.get("q") == wide["z"] and wide.get("v") == wide.get("k") and kv_heads and not rest:
            self.sizes["kv_heads"] = kv_heads
            places |= {
                "q": out(named["q"], heads=heads),
                "k": out(named["k"], heads=kv_heads),
                "v": out(named["v"], heads=kv_heads),
            }
        return places

    def _inside(self) -> dict[str, Place]:
        """Find the MLP's input, up projection, gate and what the down projection reads."""
        if self._mlp is None:
            return {}
        sight, returned = self._sight, self._sight(self._mlp, "out")
        maps = sight.maps(self._mlp)
        places = self._read(self._mlp, "mlp_in")
        down = next((p for p in reversed(maps) if same(sight(p, "out"), returned)), None)
        hidden = None if down is None else sight(down, "in")
        if down is None or hidden is None or "mlp_in" not in places:
            return places
        x = sight(self._mlp, "in")
        ups = {p: y for p in maps if p != down and same(sight(p, "in"), x) and (y := sight(p, "out")) is not None and y.shape == hidden.shape}
        ...
