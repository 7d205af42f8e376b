"""Random tokens that come twice, and what a network does on them.

Shapes: B rows, T tokens, L layers, H heads, N tokens of one copy, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from actkit.core.edits.edit import Edit
from actkit.core.errors import InputError
from actkit.core.run.recording import Recording
from actkit.maths.next_token import log_prob_of
from actkit.model import Model
from actkit.trace._attribution import unembedding


def repeated(
    model: Model, num: int = 4, length: int = 40, start: int | None = None, seed: int = 0
) -> Tensor:
    """Return (num, 2 length) random tokens, the second half like the first, after a start token.

    Arguments and errors as in `induction`.
    """
    size = len(unembedding(model).weight)
    start = getattr(model.tokenizer, "bos_token_id", None) if start is None else start
    first = [] if start is None else [start]
    if not (num >= 1 and 2 <= length < size):
        raise InputError(f"need num >= 1 and length in 2..{size - 1}, got {num} and {length}")
    gen = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(size, generator=gen) for _ in range(num))
    halves = [order[~torch.isin(order, torch.tensor(first))][:length] for order in orders]
    return torch.stack([torch.cat([torch.tensor(first).long(), half, half]) for half in halves])


def prefix_matching(probs_BHTT: Tensor) -> Tensor:
    """Return the (H,) mean attention from each token of the second copy to its last follower.

    Args:
        probs_BHTT: Attention on tokens whose second half is the first, after a start token if T
            is odd.
    """
    num_tokens = probs_BHTT.shape[-1]
    length = num_tokens // 2
    i_N = torch.arange(num_tokens - length, num_tokens, device=probs_BHTT.device)
    return probs_BHTT[:, :, i_N, i_N - length + 1].float().mean((0, 2))


def prefix_scores(model: Model, rec: Recording) -> Tensor:
    """Return the prefix matching of every head, (L, H), of a run that recorded `attn_probs.*`."""
    sites = model.sites("attn_probs.*")
    return torch.stack([prefix_matching(rec[site.name]) for site in sites])


def token_losses(model: Model, tokens_BT: Tensor, edits: Sequence[Edit] = ()) -> Tensor:
    """Return the (B, T - 1) losses (nats) of each position on the token after it."""
    return losses_of(model.run(tokens_BT, edits=edits, logits=True), tokens_BT)


def losses_of(rec: Recording, tokens_BT: Tensor) -> Tensor:
    """Return the same of a run that recorded its logits."""
    log_p = rec.logits[:, :-1].float().log_softmax(-1)
    return -log_prob_of(log_p, tokens_BT[:, 1:])


def icl_score(losses_BT: Tensor, early: int = 50, late: int = 500) -> float:
    """Return the mean loss at a late position less that at an early one (nats): below 0 is good.

    Example:
        >>> icl_score(torch.tensor([[5.0, 4.0, 3.0], [5.0, 2.0, 2.0]]), early=0, late=2)
        -2.5
    """
    if not 0 <= early < late < losses_BT.shape[1]:
        raise InputError(
            f"positions must be 0 <= early < late < {losses_BT.shape[1]}, got {early} and {late}"
        )
    return float((losses_BT[:, late] - losses_BT[:, early]).mean())
