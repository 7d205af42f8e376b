"""Answers at the end of chats: their tokens, and the mean of the states there.

Shapes: B batch, T tokens, D width.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.chats import is_answered
from actkit.core.run.recording import Rows
from actkit.model import Model


def tokens_of(model: Model, example: Any) -> tuple[list[int], int]:
    """Return the token ids of a text or chat, and the position at which its answer begins.

    A chat that ends with an answer ends with the answer's last token, without what would begin
    the next one; of any other chat, and of texts, the last token stands for the answer.

    Raises:
        InputError: The example is not text.
    """
    if is_answered(example):
        *prompt, answer = example
        if not answer.get("content"):
            raise InputError(f"an answer must have a token, got {answer.get('content')!r}")
        head, whole = _ids(model, [prompt]), _ids(model, [example])
        same = (a == b for a, b in zip(head, whole, strict=False))
        # a tokenizer may join the answer's first letters with what stands before them
        return whole, sum(takewhile(bool, same))
    ids = _ids(model, example)
    return ids, len(ids) - 1


def _ids(model: Model, example: Any) -> list[int]:
    found = model.encode(example).tokens
    if found is None or len(found) != 1:
        raise InputError(f"an example must be one text or chat, got {type(example).__name__}")
    ids: list[int] = found[0].tolist()
    return ids


def answer_states(
    model: Model, examples: Sequence[Any], sites: str, batch_size: int = 8
) -> dict[str, Tensor]:
    """Return one (N, D) float32 mean state of each example's answer at each site."""
    rows = [tokens_of(model, example) for example in examples]
    parts: dict[str, list[Tensor]] = {}
    for first in track(range(0, len(rows), batch_size), "reading answers"):
        ids, starts = zip(*rows[first : first + batch_size], strict=True)
        rec = model.run(list(ids), record=sites)
        start_B = torch.tensor(starts, device=rec.rows.valid.device)
        for name in rec:
            parts.setdefault(name, []).append(mean_from(rec[name], rec.rows_of(name), start_B))
    return {name: torch.cat(own) for name, own in parts.items()}


def mean_from(acts_BTD: Tensor, rows: Rows, start_B: Tensor) -> Tensor:
    """Return the (B, D) float32 mean over each row's valid tokens from a position on."""
    read_BT = rows.valid & (rows.position >= start_B.to(rows.position)[:, None])
    weight_BT = read_BT / read_BT.sum(-1, keepdim=True)
    return torch.einsum("btd,bt->bd", acts_BTD.float(), weight_BT.to(acts_BTD.device))
