"""One synthetic world: facts to recall from memory, and links in the context to follow twice.

Shapes: B prompts, N items of the context.
"""

from typing import Any

import torch
from torch import Tensor, nn

from actkit.core.run.recording import Recording
from actkit.model import Model
from actkit.trace._task import Task
from actkit.worlds.toy_transformer import toy
from tests._kept import kept

HEADS, WIDTH = 8, 64
KEYS, VALUES, SIZE, NUM = 24, 6, 5, 6
"""Facts, their values, places of each of the kinds a, b and c, and tokens of the context."""
KEY, VALUE = 0, KEYS
LINK = VALUE + VALUES  # a -> b, then b -> c, one token each
ASK_A = LINK + 2 * SIZE**2
ASK_B, ANSWER = ASK_A + SIZE, ASK_A + 2 * SIZE
RECALL = ANSWER + SIZE
WORDS = RECALL + 1


def facts() -> Tensor:
    """Return the (KEYS,) token that each key recalls."""
    return VALUE + torch.arange(KEYS) % VALUES


def recall(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw contexts of links with one key among them, and ask for the key's fact."""
    gen = torch.Generator().manual_seed(seed)
    token_BT = LINK + torch.randint(2 * SIZE**2, (num, NUM + 1), generator=gen)
    key_B = torch.randint(KEYS, (num,), generator=gen)
    place_B1 = torch.randint(NUM, (num, 1), generator=gen)
    token_BT.scatter_(1, place_B1, KEY + key_B[:, None])
    token_BT[:, -1] = RECALL
    return token_BT, facts()[key_B]


def hops(num: int, seed: int, two: bool = True) -> tuple[Tensor, Tensor]:
    """Draw three chains a -> b -> c, links shuffled, and ask for the end of one, from a or b."""
    gen = torch.Generator().manual_seed(seed)
    a_B3, b_B3, c_B3 = (
        torch.rand(num, SIZE, generator=gen).argsort(1)[:, : NUM // 2] for _ in range(3)
    )
    first_B3, second_B3 = a_B3 * SIZE + b_B3, SIZE**2 + b_B3 * SIZE + c_B3
    links_BN = LINK + torch.cat([first_B3, second_B3], 1)
    order_BN = torch.rand(num, NUM, generator=gen).argsort(1)
    asked_B1 = ASK_A + a_B3[:, :1] if two else ASK_B + b_B3[:, :1]
    return torch.cat([links_BN.gather(1, order_BN), asked_B1], 1), ANSWER + c_B3[:, 0]


def recall_task(num: int, seed: int) -> Task:
    """Pair each prompt with one that names a key of another value."""
    clean, answer_B = recall(num, seed)
    at_key = clean < KEYS
    other = (clean + 1 + torch.arange(num)[:, None] % (VALUES - 1)) % KEYS
    values = range(VALUE, VALUE + VALUES)
    wrong = [[v for v in values if v != own] for own in answer_B.tolist()]
    return Task(clean, torch.where(at_key, other, clean), answer_B, wrong, name="recall")


def hops_task(num: int, seed: int) -> Task:
    """Pair each prompt of two hops with one that asks another chain of the same context."""
    clean, answer_B = hops(num, seed)
    corrupt, asked_B = clean.clone(), clean[:, -1] - ASK_A
    for row, asked in enumerate(asked_B.tolist()):
        links = (clean[row, :-1] - LINK).tolist()
        starts = [link // SIZE for link in links if link < SIZE**2]
        corrupt[row, -1] = ASK_A + next(start for start in starts if start != asked)
    ends = range(ANSWER, ANSWER + SIZE)
    wrong = [[c for c in ends if c != own] for own in answer_B.tolist()]
    return Task(clean, corrupt, answer_B, wrong, name="two hops")


@kept
def trained(num_steps: int = 600, sharpen_from: int = 250, seed: int = 0) -> Any:
    """Train four blocks of attention on two hops, and on a sixth of recall and of one hop each.

    After 250 steps, what each head writes at the last token costs the root of its
    length. Without this all heads of a block do a little of both tasks: the heads of one task
    alone are then too few to matter (measured: at most 2% of recall is lost without them).
    """
    net = toy(WORDS, layers=4, heads=HEADS, width=WIDTH, positions=NUM + 1, norm=True, scale=True,
              seed=seed)  # fmt: skip
    nn.init.zeros_(net.transformer.wpe.weight).requires_grad_(False)  # order tells nothing
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 3e-3)
    model = Model(net)
    for step in range(num_steps):
        now = 3 * (1_000_000 * (seed + 1) + step)
        parts = [recall(16, now), hops(16, now + 1, two=False), hops(64, now + 2)]
        token_BT, answer_B = (torch.cat(x) for x in zip(*parts, strict=True))
        sharpen = step >= sharpen_from
        rec = model.run(token_BT, "z.*" if sharpen else (), logits=True, grad=True)
        logits_BV = rec.logits[:, -1]
        loss = nn.functional.cross_entropy(logits_BV, answer_B)
        optimiser.zero_grad()
        (loss + 0.06 * spread(net, rec) if sharpen else loss).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return net


def spread(net: Any, rec: Recording) -> Tensor:
    """Return the sum over heads of the root of what each writes at the last token."""
    roots = []
    for block, z_BTHK in zip(net.transformer.h, rec.values(), strict=True):
        out_HKD = block.attn.c_proj.weight.view(HEADS, -1, WIDTH)
        written_BHD = torch.einsum("bhk,hkd->bhd", z_BTHK[:, -1], out_HKD)
        roots.append(written_BHD.norm(dim=-1).add(0.01).sqrt().sum(1).mean())
    return torch.stack(roots).sum()
