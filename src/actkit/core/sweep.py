"""Many edited runs of one input, batched.

Shapes: V variants, B rows of the input, P asked positions, n rows of one batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from actkit.core.edit import Edit
from actkit.core.errors import EditError
from actkit.core.inputs import Batch
from actkit.core.progress import track
from actkit.core.where import indices

if TYPE_CHECKING:
    from actkit.core.model import Model


def sweep(
    model: "Model",
    inputs: Any,
    variants: Sequence[Sequence[Edit]],
    metric: Callable[[Tensor], Tensor],
    at: Any,
    batch: int,
) -> Tensor:
    """Return the (V, B) metric of every variant; rows of several variants share a batch."""
    base = model.encode(inputs)
    if base.tokens is None:
        raise EditError("a sweep needs token inputs, whose logits have positions")
    if not variants or batch < 1:
        raise EditError(f"a sweep needs a variant and a batch, got {len(variants)} and {batch}")
    rows, where = len(base.tokens), _positions(base, at)
    at_once = max(1, batch // rows)
    results = []
    for start in track(range(0, len(variants), at_once), "sweeping"):
        chunk = variants[start : start + at_once]
        edits = [_in_rows(e, i, rows) for i, v in enumerate(chunk) for e in v]
        logits = model.run(_repeated(base, len(chunk)), edits=edits, logits=True).logits
        if logits is None:
            raise EditError("a sweep needs logits; this network returned none")
        own = torch.arange(len(logits), device=logits.device)[:, None]
        value = metric(logits[own, where.to(logits.device).repeat(len(chunk), 1)])
        results.append(_checked(value, len(logits)).view(len(chunk), rows))
    return torch.cat(results)


def _in_rows(edit: Edit, variant: int, rows: int) -> Edit:
    """Move an edit to the rows that its variant has in the shared batch."""
    chosen = edit.where.rows
    own = (
        torch.arange(rows) if chosen is None else indices(chosen, rows, "rows", torch.device("cpu"))
    )
    tokens = edit.where.tokens
    if isinstance(tokens, Tensor):
        raise EditError(f"a sweep takes positions or a slice at {edit.site}, not a token mask")
    return replace(edit, where=replace(edit.where, rows=own + variant * rows))


def _repeated(batch: Batch, times: int) -> Batch:
    def repeat(value: Any) -> Any:
        return torch.cat([value] * times) if isinstance(value, Tensor) else value

    return Batch(
        tuple(map(repeat, batch.args)),
        {k: repeat(v) for k, v in batch.kwargs.items()},
        repeat(batch.tokens),
        repeat(batch.valid),
    )


def _positions(base: Batch, at: Any) -> Tensor:
    """Return the (B, P) indices of the asked positions; they count a row's valid tokens."""
    if base.tokens is None or not (at == "last" or isinstance(at, int | slice)):
        raise EditError(f"positions must be 'last', an index or a slice, got {at!r}")
    valid = torch.ones_like(base.tokens, dtype=torch.bool) if base.valid is None else base.valid
    at = slice(-1, None) if at == "last" else at
    chosen = []
    for row in valid:
        index = row.nonzero()[:, 0].cpu()
        if isinstance(at, int) and not -len(index) <= at < len(index):
            raise EditError(f"a position must be below {len(index)} in every row, got {at}")
        chosen.append(index[at].reshape(-1))
    if not len(chosen[0]) or len({len(c) for c in chosen}) > 1:
        raise EditError(
            f"positions must be as many in every row and not none, got {[len(c) for c in chosen]} "
            f"for {at}"
        )
    return torch.stack(chosen)


def _checked(value: Any, rows: int) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != (rows,):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise EditError(f"a metric must return a tensor of shape ({rows},), got {got}")
    return value
