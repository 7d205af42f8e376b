"""An induction circuit wired by hand, with weak random weights everywhere else.

Head 0.0 writes each token's predecessor beside it; head 1.0 looks for the token whose predecessor
is the current one, and copies it to the logits. The stream holds the token, the position, the
predecessor and the answer, each one-hot.
"""

from typing import Any

import torch

from actkit.model import Model
from actkit.trace import Task
from actkit.worlds.toy_transformer import clear, set_head, toy

WORDS, POSITIONS, HEADS = 12, 7, 3
KNOWN = {
    "input -> head 0.0 v",
    "head 0.0 -> head 1.0 k",
    "input -> head 1.0 q",
    "input -> head 1.0 v",
    "head 1.0 -> logits",
}
"""The edges that carry the tokens; those that carry positions are the same on both sides."""


@torch.no_grad()
def wired(noise: float = 0.01, seed: int = 0) -> Model:
    """Return the network; noise is the standard deviation of all weights' random part."""
    size = 15
    net: Any = clear(toy(WORDS, heads=HEADS, width=HEADS * size, positions=POSITIONS))
    width, eye = HEADS * size, torch.eye(WORDS)
    token, place = slice(0, WORDS), slice(WORDS, WORDS + POSITIONS)
    before, answer = (slice(i, i + WORDS) for i in (place.stop, place.stop + WORDS))
    net.transformer.wte.weight[:, token] = eye
    net.transformer.wpe.weight[:, place] = torch.eye(POSITIONS)

    def from_stream(start: slice, what: torch.Tensor) -> torch.Tensor:
        into = torch.zeros(width, what.shape[1])
        into[start] = what
        return into

    previous = torch.eye(POSITIONS).roll(-1, 1)
    previous[0] = 0  # the first token has no predecessor
    copies = from_stream(token, eye)
    set_head(net, 0, 0, from_stream(place, 20 * previous), from_stream(place, torch.eye(POSITIONS)),
             copies, from_stream(before, eye).mT)  # fmt: skip
    set_head(net, 1, 0, from_stream(token, 20 * eye), from_stream(before, eye), copies,
             from_stream(answer, eye).mT)  # fmt: skip
    net.lm_head.weight[:, answer] = 8 * eye
    gen = torch.Generator().manual_seed(seed)
    for block in net.transformer.h:
        for weight in block.attn.parameters():
            weight += noise * torch.randn(weight.shape, generator=gen)
    return Model(net, name="wired induction")


def task(num: int = 6, seed: int = 0) -> Task:
    """Return pairs "x a b y z w a" -> b, and others of which no token is the same."""
    gen = torch.Generator().manual_seed(seed)
    clean, corrupt = [], []
    for _ in range(num):
        a, b, *rest = torch.randperm(WORDS, generator=gen).tolist()
        clean.append([rest[0], a, b, *rest[1:4], a])
        c, d = rest[4], rest[5]
        corrupt.append([rest[6], c, d, a, rest[7], b, c])
    answers, wrong = [row[2] for row in clean], [row[2] for row in corrupt]
    return Task(torch.tensor(clean), torch.tensor(corrupt), answers, wrong, name="induction")
