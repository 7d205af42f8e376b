"""Two sides of a pair: as many tokens, or told which corresponds to which.

Shapes: B pairs, T tokens.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from actkit.core.errors import InputError
from actkit.core.inputs import Batch
from actkit.core.model import Model
from actkit.core.recording import Recording
from actkit.core.token_labels import token_labels

if TYPE_CHECKING:
    from actkit.trace._task import Trial


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


def aligned(rec: Recording, trial: "Trial", side: str) -> Recording:
    """Return a recording of one side rearranged to the tokens of the other.

    Tokens without a counterpart keep what the other side has itself.
    """
    other = "clean" if side == "corrupt" else "corrupt"
    own = trial.record(other, list(rec))
    values, rows = {}, {}
    for name in rec:
        x, new = rec[name], own[name].clone()
        if own.rows_of(name).valid.shape != new.shape[:2]:
            raise InputError(f"prompts of different lengths cannot be aligned at {name}")
        for b, pairs in enumerate(trial.task.align or ()):
            source = trial.valid(side)[b].nonzero()[:, 0]
            target = trial.valid(other)[b].nonzero()[:, 0]
            for corrupt, clean in enumerate(pairs):
                if clean < 0:
                    continue
                here, there = (corrupt, clean) if side == "clean" else (clean, corrupt)
                new[b, target[here]] = x[b, source[there]]
        values[name], rows[name] = new, own.rows_of(name)
    axes = {name: own.axes_of(name) for name in values}
    return Recording(values, rows, own.rows, axes=axes)
