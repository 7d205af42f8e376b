"""Wire small networks by hand: named slots in the stream, heads that read and write them.

Shapes: D width, S size of a slot, C columns of a map.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from actkit.worlds.toy_transformer import clear, set_head, toy

ROOM = 10
"""The shortest context of a network: to look at its structure takes a few tokens."""


@dataclass
class Wiring:
    """A toy whose stream is split into named slots, wired head by head.

    The slots "token" and "position" hold what a prompt brings, one-hot; "out" holds the logits.

    Attributes:
        net: The network.
        slots: Where each slot lies in the stream.
        places: The wired heads of each variable, as (layer, head).
        generator: Draws which heads are wired, and the noise.
    """

    net: Any
    slots: Mapping[str, slice]
    generator: torch.Generator
    places: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def head(
        self, name: str, layer: int, q: Tensor, k: Tensor, v: Tensor, to: tuple[str, Tensor]
    ) -> None:
        """Wire one head of a layer, drawn among the free ones, to compute a variable."""
        used = {h for group in self.places.values() for at, h in group if at == layer}
        free = [h for h in range(self.net.config.n_head) if h not in used]
        head = free[int(torch.randint(len(free), (), generator=self.generator))]
        self.places.setdefault(name, []).append((layer, head))
        slot, matrix = to
        set_head(self.net, layer, head, q, k, v, self.map(**{slot: matrix.mT}).mT)

    def map(self, **blocks: Tensor) -> Tensor:
        """Return a (D, C) map of the stream: some slots have (S, C) blocks, the rest is zero."""
        columns = next(iter(blocks.values())).shape[1]
        out = torch.zeros(self.net.config.n_embd, columns)
        for slot, block in blocks.items():
            out[self.slots[slot]] = block
        return out


@torch.no_grad()
def blank(
    words: int,
    places: int,
    layers: int,
    heads: int,
    seed: int = 0,
    noise: float = 0.0,
    **sizes: int,
) -> Wiring:
    """Return a network of small random heads that only reads its prompt and its slot "out".

    Args:
        words: Size of the vocabulary.
        places: Longest prompt.
        layers: Number of blocks.
        heads: Heads in each.
        seed: Of the noise and of the heads that are wired.
        noise: Standard deviation of the weights of heads.
        sizes: Of further slots.

    Example:
        >>> wires = blank(words=4, places=3, layers=1, heads=1)
        >>> sorted(wires.slots)
        ['out', 'position', 'token']
    """
    sizes = {"token": words, "position": places, **sizes, "out": words}
    stops = list(accumulate(sizes.values()))
    slots = {n: slice(e - s, e) for (n, s), e in zip(sizes.items(), stops, strict=True)}
    width = heads * max(words + places + 1, -(-stops[-1] // heads))
    net = clear(toy(words, layers, heads, width, max(places, ROOM)))
    generator = torch.Generator().manual_seed(seed)
    for block in net.transformer.h:
        for weight in (block.attn.c_attn.weight, block.attn.c_proj.weight):
            weight.copy_(torch.randn(weight.shape, generator=generator) * noise)
    net.transformer.wte.weight[:, slots["token"]] = torch.eye(words)
    net.transformer.wpe.weight[:places, slots["position"]] = torch.eye(places)
    net.lm_head.weight[:, slots["out"]] = torch.eye(words)
    return Wiring(net, slots, generator)
