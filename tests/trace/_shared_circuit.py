"""A toy that does two tasks with one circuit, but for the heads that read the cue.

A prompt is two of the tokens 0 to 7, a cue and an end. After cue A the answer is the first token,
after cue B the second. In block 0 heads carry the cue to the end as a pointer, in block 1 movers
attend where it points and write what they find. The other heads write what nobody reads. All
weights have a little noise.
"""

from itertools import permutations
from typing import Any, Literal

import torch
from torch import Tensor

from actkit.model import Model
from actkit.trace import Task
from actkit.worlds.toy_transformer import clear, set_head, toy

A, B, NONE, END = 8, 9, 10, 11
POINTERS: dict[str, list[tuple[int, int]]] = {"A": [(0, 0), (0, 1)], "B": [(0, 0), (0, 2)]}
MOVERS = [(1, 0), (1, 2)]
OTHERS = [(0, 3), (1, 1), (1, 3)]
GAINS = {(1, 0): 1.0, (1, 2): 0.7}


def shared(deaf: bool = False) -> Model:
    """Return the network; a deaf one has no head that reads cue B."""
    net: Any = clear(toy(12, layers=2, heads=4, width=32, positions=4))
    gen = torch.Generator().manual_seed(0)
    eye, zero = torch.eye(32), torch.zeros(32, 1)
    with torch.no_grad():
        net.transformer.wte.weight[:, :12] = torch.eye(12)
        net.transformer.wpe.weight[:, 12:16] = torch.eye(4)
        net.lm_head.weight[:8, 18:26] = torch.eye(8)
    for layer, head in OTHERS:
        q, k, v = (0.5 * torch.randn(32, 6, generator=gen) for _ in range(3))
        set_head(net, layer, head, q, k, v, eye[26:32])
    for head in range(3):
        q, k, v = zero.clone(), zero.clone(), torch.zeros(32, 2)
        q[15], k[14] = 100.0, 1.0  # the end attends to the cue
        v[A, 0] = (0, head) in POINTERS["A"]
        v[B, 1] = (0, head) in POINTERS["B"] and not deaf
        set_head(net, 0, head, q, k, v, eye[16:18])
    for (layer, head), gain in GAINS.items():
        q, k, v = torch.zeros(32, 2), torch.zeros(32, 2), torch.zeros(32, 8)
        q[16, 0] = q[17, 1] = 2.0
        k[12, 0] = k[13, 1] = 1.0
        v[:8] = gain * torch.eye(8)
        set_head(net, layer, head, q, k, v, eye[18:26])
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.003 * torch.randn(weight.shape, generator=gen) * weight.requires_grad
    return Model(net)


def task(cue: Literal["A", "B"]) -> Task:
    """Return all 56 ordered pairs of tokens, each against two others without a cue."""
    pairs = torch.tensor(list(permutations(range(8), 2)))
    clean = _prompts(pairs, A if cue == "A" else B)
    corrupt = _prompts((pairs + 3) % 8, NONE)
    right, wrong = (pairs.mT if cue == "A" else pairs.flip(1).mT).tolist()
    return Task(clean, corrupt, right, wrong, name=f"cue {cue}")


def _prompts(pairs: Tensor, cue: int) -> Tensor:
    rest = torch.tensor([cue, END]).expand(len(pairs), 2)
    return torch.cat([pairs, rest], 1)
