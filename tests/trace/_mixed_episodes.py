"""A network that answers from memory, unless the context shows the same item: then it copies.

Shapes: B episodes, K shots.
"""

from typing import Any

import torch
from torch import Tensor, nn

from actkit.worlds.toy_transformer import toy
from tests._kept import kept

LABELS, ITEMS, SHOTS = 4, 24, 3
"""Tokens 0 to 3 are labels; item i is token 4 + i, and its label in memory is i modulo 4."""


def episodes(num: int, shift: Tensor, shown: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Draw sequences x1 l1 x2 l2 x3 l3 x, the items of the context of different labels.

    Args:
        num: B.
        shift: (B,) what is added to every label of the context; 0 for true ones.
        shown: (B,) bool, whether the last item stands in the context.
        seed: Of the draw.

    Returns:
        (B, 7) tokens and the (B,) label in memory of the last item.
    """
    gen = torch.Generator().manual_seed(seed)
    label_BK = torch.rand(num, LABELS, generator=gen).argsort(1)[:, :SHOTS]
    group_BK = torch.randint(ITEMS // LABELS, (num, SHOTS), generator=gen)
    which_B1 = torch.randint(SHOTS, (num, 1), generator=gen)
    label_B, group_B = (x.gather(1, which_B1)[:, 0] for x in (label_BK, group_BK))
    step_B = torch.randint(1, ITEMS // LABELS, (num,), generator=gen)
    other_B = (group_B + step_B) % (ITEMS // LABELS)  # another item of that label
    token_BT = torch.empty(num, 2 * SHOTS + 1, dtype=torch.int64)
    token_BT[:, :-1:2] = LABELS + LABELS * group_BK + label_BK
    token_BT[:, 1::2] = (label_BK + shift[:, None]) % LABELS
    token_BT[:, -1] = LABELS + LABELS * torch.where(shown, group_B, other_B) + label_B
    return token_BT, label_B


@kept
def trained(num_steps: int, seed: int = 0) -> Any:
    """Train four blocks on two kinds of episodes, by halves.

    One has true labels and asks an item that is not shown, the other has false labels and asks
    one that is: there, the shown label is the answer.
    """
    net = toy(LABELS + ITEMS, layers=4, heads=3, width=48, positions=7, mlp=48, norm=True,
              scale=True, seed=seed)  # fmt: skip
    net.transformer.wte.weight.requires_grad_(False)  # so that memory takes a block
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 3e-3)
    for step in range(num_steps):
        gen = torch.Generator().manual_seed(100_000 * (seed + 1) + step)
        copies = torch.rand(96, generator=gen) < 0.5
        shift = torch.randint(1, LABELS, (96,), generator=gen) * copies
        token_BT, label_B = episodes(96, shift, copies, seed=500_000 * (seed + 1) + step)
        logits = net(token_BT, use_cache=False, logits_to_keep=1).logits[:, 0, :LABELS]
        loss = nn.functional.cross_entropy(logits, (label_B + shift) % LABELS)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return net
