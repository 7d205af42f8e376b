"""What edits change, in nats, read from next-token distributions.

Shapes: B batch, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import actkit as ak
from actkit.model import Model


def next_logs(model: Model, inputs: Any, edits: Sequence[ak.Edit] = ()) -> Tensor:
    """Return the (B, T, V) log-probabilities of what follows each token."""
    logits = model.run(inputs, edits=edits, logits=True).logits
    return logits.float().log_softmax(-1)


def last_logs(model: Model, prompts: Any, edits: Sequence[ak.Edit] = ()) -> Tensor:
    """Return the (B, V) log-probabilities of what follows each prompt."""
    return next_logs(model, prompts, edits)[:, -1]


def kl(before: Tensor, after: Tensor) -> Tensor:
    """Return KL(before || after) over the last axis of log-probabilities."""
    return (before.exp() * (before - after)).sum(-1)


def text_log_probs(
    model: Model, texts: Sequence[str], edits: Sequence[ak.Edit] = (), first: int = 1
) -> list[Tensor]:
    """Return the log-probabilities of each text's tokens from position `first` (>= 1) on."""
    found = []
    for text in texts:
        batch = model.encode(text)
        assert batch.tokens is not None
        ids = batch.tokens[0]
        logs = next_logs(model, text, edits)[0]
        found.append(logs[first - 1 : -1].gather(-1, ids[first:, None])[:, 0])
    return found


def perplexity_ratio(
    model: Model, texts: Sequence[str], edits: Sequence[ak.Edit], first: int = 1
) -> float:
    """Return the perplexity with the edits over the perplexity without."""
    bare = torch.cat(text_log_probs(model, texts, (), first)).mean()
    return float((bare - torch.cat(text_log_probs(model, texts, edits, first)).mean()).exp())
