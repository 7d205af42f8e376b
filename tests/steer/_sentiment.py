"""Sentiment on SmolLM2: pairs to learn from, held-out openings, and the loss on prose.

Shapes: N openings, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

import actkit as ak
from actkit.model import Model

PAIRS = ak.data.sentiment()
OPENINGS = ak.data.openings("sentiment")


def log_odds(model: Model, edits: Sequence[ak.Edit] = ()) -> float:
    """Return the mean log-odds of praise against blame after the openings (nats)."""
    logits = model.run([o.prompt for o in OPENINGS], edits=edits, logits=True).logits
    log_p_NV = logits[:, -1].log_softmax(-1)
    sides = (OPENINGS[0].toward, OPENINGS[0].away)
    plus, minus = (log_p_NV[:, _first(model, words)].logsumexp(-1) for words in sides)
    return float((plus - minus).mean())


def prose_loss(model: Model, edits: Sequence[ak.Edit] = ()) -> float:
    """Return the loss on prose (nats a token)."""
    batch_BT = _prose(model)
    logits = model.run(batch_BT, edits=edits, logits=True).logits
    log_p_BTV = logits[:, :-1].log_softmax(-1)
    return float(-log_p_BTV.gather(-1, batch_BT[:, 1:, None]).mean())


@cache
def _prose(model: Model) -> Tensor:
    ids = [model.tokenizer(t)["input_ids"][:48] for t in ak.data.text(num_samples=12)]
    return torch.tensor([row for row in ids if len(row) == 48][:8])


def _first(model: Model, words: Sequence[str]) -> list[int]:
    tokenizer: Any = model.tokenizer
    return sorted({tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in words})
