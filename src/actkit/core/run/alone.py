"""Rows that run one by one, because the network can be padded on no side; put together again.

Shapes: B batch, T tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from actkit.core.edits.edit import Edit
from actkit.core.edits.operation import num_axes_of
from actkit.core.edits.where import indices
from actkit.core.errors import EditError, InputError
from actkit.core.run.inputs import Batch
from actkit.core.run.recording import Recording, Rows
from actkit.core.run.taps import Tap
from actkit.core.sites.site import Site

Run = Callable[[Batch, Sequence[Edit]], tuple[Recording, Sequence[Tap]]]
_CPU = torch.device("cpu")


def run_alone(
    batch: Batch,
    parts: Sequence[Batch],
    edits: Sequence[Edit],
    find: Callable[[str], Sequence[Site]],
    run: Run,
) -> Recording:
    """Run rows one by one and return one recording, padded where the batch is.

    Args:
        batch: All rows, padded.
        parts: Each of them, without padding.
        edits: Of the whole batch.
        find: From an edit's site to sites.
        run: Runs one row with its edits.

    Raises:
        EditError: An edit met nothing in any row.
    """
    recordings, met = [], set()
    for row, part in enumerate(parts):
        own = dict(edits_of_row(edits, row, batch, find))
        recording, taps = run(part, list(own.values()))
        acted = {id(tap.edits[i]) for tap in taps for i in tap.acted}
        met |= {index for index, edit in own.items() if id(edit) in acted}
        recordings.append(recording)
    for index, edit in enumerate(edits):
        if index not in met and not edit.operation.neutral:
            raise EditError(
                f"an edit in a run must act, but the {edit.operation.name} at {edit.site} met "
                f"nothing where {edit.where} in {len(parts)} rows that ran one by one"
            )
    return _together(recordings, batch)


def edits_of_row(
    edits: Sequence[Edit], row: int, batch: Batch, find: Callable[[str], Sequence[Site]]
) -> Iterator[tuple[int, Edit]]:
    """Yield the number of each edit that means a row, and what it is there."""
    valid = _valid(batch)
    for index, edit in enumerate(edits):
        rows = edit.batch_rows or slice(0, len(valid))
        if rows.start <= row < rows.stop:
            size, site, operation = rows.stop - rows.start, find(edit.site)[0], edit.operation
            axes = site.axes
            if not axes and operation.recorded is not None:
                axes = site.axes_of(operation.recorded)
            own = _of_row(edit, row - rows.start, size, valid[row].cpu(), axes)
            if own is not None:
                yield index, own


def _of_row(edit: Edit, row: int, size: int, valid_T: Tensor, axes: str) -> Edit | None:
    """Return an edit as one of `size` rows sees it, None if that row is not meant.

    Raises:
        EditError: The operation does not say what of its tensors is the row's.
    """
    where, entry = edit.where, row
    if where.rows is not None:
        chosen = indices(where.rows, size, "rows", _CPU).tolist()
        if row not in chosen:
            return None
        if edit.operation.extent(num_axes_of(axes))[0] != size:  # as large as the choice
            entry = chosen.index(row)
    tokens = where.tokens
    if not isinstance(tokens, str | int | slice):
        mask = torch.as_tensor(tokens)
        tokens = mask[row : row + 1, valid_T] if mask.dtype == torch.bool else tokens
    operation = edit.operation.of_row(entry, valid_T, axes)
    if (several := operation.extent(num_axes_of(axes))[0]) > 1:
        raise EditError(
            f"rows run one by one here, and the {operation.name} at {edit.site} has values for "
            f"{several} rows of which it does not say which are whose: it needs `of_row`"
        )
    return replace(
        edit, operation=operation, where=replace(where, rows=None, tokens=tokens), batch_rows=None
    )


def _together(recordings: Sequence[Recording], batch: Batch) -> Recording:
    """Return one recording of all rows; its output is the list of what the network returned."""
    valid = _valid(batch)
    left = not bool(valid[:, 0].all())
    first, tokens = recordings[0], batch.tokens
    values = {site: joined([r[site] for r in recordings], left) for site in first}
    rows = {site: _joined_rows([r.rows_of(site) for r in recordings], left) for site in first}
    given = [r.logits for r in recordings if r.has_logits]
    logits = joined(given, left) if given else None
    outputs = [r.output for r in recordings]
    output = None if all(o is None for o in outputs) else outputs
    return Recording(values, rows, Rows.of(valid, tokens), logits, output, first.axes)


def joined(parts: Sequence[Tensor], left: bool) -> Tensor:
    """Return (1, ...) tensors as one batch; axes that differ in size are filled with zeros."""
    sizes = [max(p.shape[axis] for p in parts) for axis in range(1, parts[0].dim())]
    wide = []
    for part in parts:
        missing = [n - m for n, m in zip(sizes, part.shape[1:], strict=True)]
        pads = [p for n in reversed(missing) for p in ((n, 0) if left else (0, n))]
        wide.append(torch.nn.functional.pad(part, pads))
    return torch.cat(wide)


def _joined_rows(parts: Sequence[Rows], left: bool) -> Rows:
    token = joined([p.token + 1 for p in parts], left) - 1
    valid = joined([p.valid for p in parts], left)
    position = joined([p.position for p in parts], left)
    numbers = torch.arange(len(parts), device=valid.device)[:, None].expand_as(valid)
    return Rows(valid, numbers, position, token, parts[0].grid)


def _valid(batch: Batch) -> Tensor:
    if batch.valid is None:
        raise InputError("rows that run one by one must be rows of tokens")
    return batch.valid
