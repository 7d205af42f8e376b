"""Answers as token ids, and what a network's distribution gives them.

Shapes: B pairs, A answers, V vocabulary, n rows of a batch (B again and again).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.core.run.token_labels import token_labels
from actkit.model import Model

Answers = Sequence[str | int | Sequence[str] | Sequence[int]] | Tensor


def again(rows: Tensor, num: int) -> Tensor:
    """Repeat (B, ...) rows to (n, ...)."""
    if num % len(rows):
        raise InputError(f"logits must be of {len(rows)} pairs again and again, got {num} rows")
    return rows.repeat(num // len(rows), *[1] * (rows.dim() - 1))


def pooled(log_p_nV: Tensor, ids_BA: Tensor | None) -> Tensor:
    """Return the log of the summed exponentials of each row's ids, (n,)."""
    if ids_BA is None:
        raise InputError("the metric needs answers")
    if (highest := int(ids_BA.max())) >= log_p_nV.shape[1]:
        raise InputError(f"answers must be below the {log_p_nV.shape[1]} tokens, got {highest}")
    ids = again(ids_BA.to(log_p_nV.device), len(log_p_nV))
    picked = log_p_nV.gather(1, ids.clamp_min(0))
    return picked[:, 0] if ids.shape[1] == 1 else (
        picked.masked_fill(ids < 0, -torch.inf).logsumexp(-1))  # fmt: skip


def token_ids(model: Model, given: Answers | None, beside: Tensor | None = None) -> Tensor | None:
    """Return the (B, A) token ids of words, -1 where a row has fewer, on the device of `beside`."""
    if given is None:
        return None
    rows = [_row(model, row) for row in (given.tolist() if isinstance(given, Tensor) else given)]
    most = max(map(len, rows))
    device = None if beside is None else beside.device
    return torch.tensor([row + [-1] * (most - len(row)) for row in rows], device=device)


def _row(model: Model, words: Any) -> list[int]:
    several = [words] if isinstance(words, str | int) else list(words)
    if not several or any(isinstance(word, int) and word < 0 for word in several):
        raise InputError(f"a pair needs answers: words or token ids from 0 on, got {several}")
    return [word if isinstance(word, int) else _single(model, word) for word in several]


def _single(model: Model, word: str) -> int:
    if model.tokenizer is None:
        raise InputError(f"words need a tokenizer and this network has none, got {word!r}")
    ids = model.tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = token_labels(model.tokenizer, ids)
        raise InputError(f"an answer must be one token, got {word!r} of {len(ids)}: {pieces}")
    return int(ids[0])
