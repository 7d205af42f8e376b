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
    rows = len(base.tokens)
    at_once = max(1, batch // rows)
    results = []
    for start in track(range(0, len(variants), at_once), "sweeping"):
        chunk = variants[start : start + at_once]
        edits = [_in_rows(e, i, rows) for i, v in enumerate(chunk) for e in v]
        logits = model.run(_repeated(base, len(chunk)), edits=edits, logits=True).logits
        if logits is None:
            raise EditError("a sweep needs logits; this network returned none")
        value = metric(_positions(logits, at, base, len(chunk)))
        if value.shape != (len(chunk) * rows,):
            raise EditError(
                f"a metric must return shape ({len(chunk) * rows},), got {tuple(value.shape)}"
            )
        results.append(value.view(len(chunk), rows))
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


def _positions(logits: Tensor, at: Any, base: Batch, times: int) -> Tensor:
    """Return the logits (n, P, vocabulary) at the asked positions; "last" is each row's last."""
    if isinstance(at, slice):
        return logits[:, at]
    if isinstance(at, int):
        return logits[:, [at]]
    if at != "last":
        raise EditError(f"positions must be 'last', an index or a slice, got {at!r}")
    if base.valid is None:
        return logits[:, -1:]
    order = torch.arange(logits.shape[1], device=logits.device)
    last = torch.where(base.valid, order, -1).amax(-1).repeat(times)
    return logits[torch.arange(len(logits)), last][:, None]
