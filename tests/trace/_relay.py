"""A toy whose answer runs through one head of each block, beside heads that only make noise.

Tokens lie one-hot in units 0 to 4 of the stream, positions in 5 to 8. The head of block l on the
path carries what lies at position l to position l + 1, each block into five units of its own; the
last five are the logits, so the answer at position 3 is the token at position 0. All other heads
have random maps from the whole stream to six units that nobody but they read.
"""

from typing import Any

import torch

from actkit.model import Model
from actkit.trace import Task
from actkit.worlds.toy_transformer import clear, set_head, toy

PATH = ((0, 1), (1, 2), (2, 0))
"""The heads that carry the answer."""
GAINS = (1.7, 0.6, 2.3)
WORTH = 1.7 * 0.6 * 2.3
"""The answer's logit; all others are zero."""
LAYERS, HEADS = 3, 3


def relay() -> Model:
    """Return the network; vocabulary 5, four positions, nothing in the MLPs."""
    net: Any = clear(toy(5, LAYERS, HEADS, width=30, positions=4))
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        net.transformer.wte.weight[:, :5] = torch.eye(5)
        net.transformer.wpe.weight[:, 5:9] = torch.eye(4)
        net.lm_head.weight[:, 19:24] = torch.eye(5)
    for layer in range(LAYERS):
        for head in range(HEADS):
            q, k, v, o = (torch.randn(30, 6, generator=gen) for _ in range(4))
            junk = torch.zeros(6, 30)
            junk[:, 24:] = o[:6]
            set_head(net, layer, head, q, k, v, junk)
    for layer, head in PATH:
        q, k, v, o = torch.zeros(30, 1), torch.zeros(30, 1), torch.zeros(30, 5), torch.zeros(5, 30)
        q[5 + layer + 1], k[5 + layer] = 100.0, 1.0
        start = 0 if layer == 0 else 4 + 5 * layer
        v[start : start + 5] = GAINS[layer] * torch.eye(5)
        o[:, 9 + 5 * layer : 14 + 5 * layer] = torch.eye(5)
        set_head(net, layer, head, q, k, v, o)
    return Model(net)


def task() -> Task:
    """Return three pairs whose first tokens differ, and nothing else."""
    clean = torch.tensor([[3, 1, 2, 0], [4, 2, 2, 1], [1, 4, 0, 3]])
    corrupt = clean.clone()
    corrupt[:, 0] = torch.tensor([4, 0, 2])
    return Task(clean, corrupt, clean[:, 0], corrupt[:, 0], name="relay")
