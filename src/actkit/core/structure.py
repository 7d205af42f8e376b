"""Finds the points of a decoder that no table speaks for: names propose, numbers decide.

The longest list of blocks of one class is taken for the stack. Which children of a block are its
attention and its MLP, and which maps are their projections, names propose. The network then reads
two rows of tokens, in evaluation mode: a point is kept only if what flowed there is what the point
means, in every block, and if the middle of the stream can be edited there. Whatever fails is
refused, with the reason. Blocks may be named by anything; a list of them must be a `ModuleList`.

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

from actkit.core.edit import Edit, add, apply
from actkit.core.layout import Layout
from actkit.core.sight import Sight, adds_up, is_map, is_norm, same, watched
from actkit.core.sites import POINTS, WHOLE, Place, Stack, into, out, stack_sites
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
UNKNOWN = {
    **dict.fromkeys(("attn_in", "attn_out"), "in a check, no such tensor of the attention fitted"),
    **dict.fromkeys(("mlp_in", "mlp_out"), "in a check, no such tensor of the MLP fitted"),
    **dict.fromkeys("qkvz", "no map for it was found that fits the number of heads"),
    **dict.fromkeys(("attn_scores", "attn_probs"), "attention is not computed where it is known"),
    **dict.fromkeys(("mlp_pre", "mlp_gate", "mlp_hidden"), "the MLP's maps cannot be told apart"),
    "resid_mid": "in a check, no module received the stream after attention as such",
    "embeddings": "no embedding of the token ids was found",
    "final_norm": "no norm of the last block's output was found",
    "logits": "the network returns no logits for each token",
}
"""Reasons for refusals; "by structure" is what all of them share."""


def found_stack(network: nn.Module, blocks: str, number: int) -> Stack:
    """Return the stack, with every point checked, of a network that takes token ids.

    Args:
        network: The network.
        blocks: Path of the blocks, with "{}" where the index goes.
        number: How many they are.

    Raises:
        ValueError: The blocks hand on no (B, T, D) stream from one to the next.
    """
    finder = Finder(Sight(network, blocks, number))
    stack = Stack(
        blocks=blocks,
        num_blocks=number,
        places=finder.places,
        lacks={p: f"by structure: {UNKNOWN.get(p, NO_EXPERTS)}" for p in POINTS},
        **finder.sizes,
    )
    return _checked(network, stack, finder)


NO_EXPERTS = "experts are not looked for: read them by module path"


class Finder:
    """Places of points that one run does not contradict, and the sizes that they need."""

    def __init__(self, sight: Sight) -> None:
        """Look at what flowed."""
        self.sight = sight
        stream = sight("", "in")
        after = sight("", "out")
        if stream is None or stream.dim() != 4 or not same(stream[1:], _but_last(after)):
            raise ValueError("its blocks hand on no (batch, token, width) stream")
        self.stream, self.after = stream, after
        self.attention, self.mlp = self._child(ATTENTION), self._child(MLP)
        self.places = {"resid_pre": into(""), "resid_post": out("")}
        self.sizes: dict[str, Any] = {"width": stream.shape[-1]}
        self._outside()
        self._added()
        if self.attention:
            self._heads(self._maps(self.attention))
        if self.mlp:
            self._inside(self._maps(self.mlp))
        self.places = {
            point: replace(place, fleeting=sight.fleeting(place))
            for point, place in self.places.items()
        }

    def _child(self, names: re.Pattern[str]) -> str:
        """Return the one child of a block that goes by such a name, "" unless there is one."""
        found = [
            path
            for path, module in self.sight.inner.items()
            if path and "." not in path
            and (names.search(path) or names.search(type(module).__name__))
            and not (OTHERS.search(path) or OTHERS.search(type(module).__name__))
        ]
        return found[0] if len(found) == 1 else ""

    def _maps(self, parent: str) -> dict[str, str]:
        """Return the linear maps below a child of the block: path to last part of the path."""
        below = {p: m for p, m in self.sight.inner.items() if p.startswith(f"{parent}.")}
        return {p: p.rpartition(".")[2] for p, m in below.items() if is_map(m)}

    def _outside(self) -> None:
        """Find embeddings, final norm and logits."""
        sight, ids = self.sight, None
        for path, module in sight.outer.items():
            x, y = sight.outside(path, "in"), sight.outside(path, "out")
            if isinstance(module, nn.Embedding) and x is not None and "embeddings" not in self.places:
                ...
