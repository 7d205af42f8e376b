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

if TYPE_CHECKING:
    from actkit.core.model import Model


def sweep(
    model: "Model",
    inputs: Any,
    variants: Sequence[Sequence[Edit]],
    metric: Callable[[Tensor], Tensor],
    at: Any,
    batch: int | str,
) -> Tensor:
    """Return the (V, B) metric of every variant; rows of several variants share a batch."""
    batch = 16 if batch == "auto" else int(batch)
    base = model.encode(inputs)
    if base.tokens is None:
        raise EditError("a sweep needs token inputs, whose logits have positions")
    if not variants or batch < 1:
        raise EditError(f"a sweep needs a variant and a batch, got {len(variants)} and {batch}")
    rows = len(base.tokens)
    at_once = max(1, batch // rows)
    results = []
    for start in track(range(0, len(variants), at_once), "sweeping"):
        chunk = variants[start : start + at_once]
        blocks = [slice(i * rows, (i + 1) * rows) for i in range(len(chunk))]
        edits = [replace(e, block=b) for b, v in zip(blocks, chunk, strict=True) for e in v]
        logits = model.run(_repeated(base, len(chunk)), edits=edits, logits=True).logits
        if logits is None:
            raise EditError("a sweep needs logits; this network returned none")
        asked = _positions(_valid(base, logits, rows), at).to(logits.device).repeat(len(chunk), 1)
        value = metric(logits[torch.arange(len(logits), device=logits.device)[:, None], asked])
        results.append(_checked(value, len(logits)).view(len(chunk), rows))
    return torch.cat(results)


def _repeated(batch: Batch, times: int) -> Batch:
    def repeat(value: Any) -> Any:
        return torch.cat([value] * times) if isinstance(value, Tensor) else value

    return Batch(
        tuple(map(repeat, batch.args)),
        {k: repeat(v) for k, v in batch.kwargs.items()},
        repeat(batch.tokens),
        repeat(batch.valid),
    )


def _valid(base: Batch, logits: Tensor, rows: int) -> Tensor:
    """Return which of each row's logits are of no padding; a decoder's own are all."""
    if base.valid is None or base.valid.shape[1] != logits.shape[1]:
        return torch.ones(rows, logits.shape[1], dtype=torch.bool)
    return base.valid


def _positions(valid: Tensor, at: Any) -> Tensor:
    """Return the (B, P) indices of the asked positions; they count a row's valid tokens."""
    if not (at == "last" or isinstance(at, int | slice)):
        raise EditError(f"positions must be 'last', an index or a slice, got {at!r}")
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
