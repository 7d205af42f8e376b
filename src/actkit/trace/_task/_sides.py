"""Two sides of a pair: as many tokens, or told which corresponds to which.

Shapes: B pairs, T tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.core.run.inputs import Batch
from actkit.core.run.recording import Recording
from actkit.core.run.token_labels import token_labels
from actkit.model import Model


def lengths(batch: Batch) -> list[int]:
    """Return the number of tokens of each row, padding left out."""
    if batch.tokens is None:
        raise InputError("a task needs prompts of tokens")
    valid = torch.ones_like(batch.tokens) if batch.valid is None else batch.valid
    return [int(n) for n in valid.sum(-1)]


def check_lengths(
    model: Model, clean: Batch, corrupt: Batch, sizes: tuple[list[int], list[int]]
) -> None:
    """Refuse pairs whose sides differ in length, and show how both were split."""
    for row, (a, b) in enumerate(zip(*sizes, strict=True)):
        if a != b:
            shown = [_pieces(model, batch, row) for batch in (clean, corrupt)]
            raise InputError(
                f"clean and corrupt must have as many tokens, pair {row} has {a} and {b}:\n"
                f"  clean   {shown[0]}\n  corrupt {shown[1]}\n"
                "write them alike, or give Task(align=) which token corresponds to which"
            )


def check_align(align: Sequence[Sequence[int]], sizes: tuple[list[int], list[int]]) -> None:
    """Refuse an alignment that does not give each corrupt token a clean one or none."""
    for row, (pairs, clean, corrupt) in enumerate(zip(align, *sizes, strict=True)):
        if len(pairs) != corrupt or not all(-1 <= i < clean for i in pairs):
            raise InputError(
                f"align must give each of the {corrupt} corrupt tokens of pair {row} a clean "
                f"position in 0..{clean - 1} or -1, got {list(pairs)}"
            )


def _pieces(model: Model, batch: Batch, row: int) -> list[Any]:
    tokens = torch.as_tensor(batch.tokens)
    valid = torch.ones_like(tokens).bool() if batch.valid is None else batch.valid
    ids = tokens[row][valid[row]].tolist()
    return ids if model.tokenizer is None else token_labels(model.tokenizer, ids)


def moved_tokens(align: Sequence[Sequence[int]], to_clean: bool) -> list[list[tuple[int, int]]]:
    """Return for each pair which token of one side goes where on the other: (from, to).

    Args:
        align: For each pair, the clean token that each corrupt one corresponds to, or -1.
        to_clean: Whether tokens go from the corrupt prompt to the clean one.
    """
    found = []
    for pairs in align:
        known = [(corrupt, clean) for corrupt, clean in enumerate(pairs) if clean >= 0]
        found.append(known if to_clean else [(clean, corrupt) for corrupt, clean in known])
    return found


def aligned(
    rec: Recording,
    own: Recording,
    moves: Sequence[Sequence[tuple[int, int]]],
    valid_BT: Tensor,
    own_valid_BT: Tensor,
) -> Recording:
    """Return a recording of one side rearranged to the tokens of the other.

    Tokens without a counterpart keep what the other side has itself.

    Args:
        rec: Of the one side.
        own: Of the other, at the same sites.
        moves: For each pair the tokens that correspond: (of the one side, of the other).
        valid_BT: Which columns of the one side are tokens.
        own_valid_BT: The same of the other.
    """
    values, rows = {}, {}
    for name in rec:
        x, new = rec[name], own[name].clone()
        if own.rows_of(name).valid.shape != new.shape[:2]:
            raise InputError(f"prompts of different lengths cannot be aligned at {name}")
        for b, pairs in enumerate(moves):
            source = valid_BT[b].nonzero()[:, 0]
            target = own_valid_BT[b].nonzero()[:, 0]
            for before, after in pairs:
                new[b, target[after]] = x[b, source[before]]
        values[name], rows[name] = new, own.rows_of(name)
    axes = {name: own.axes_of(name) for name in values}
    return Recording(values, rows, own.rows, axes=axes)
