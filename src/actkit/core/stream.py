"""Streams data through a network, batch by batch, in constant memory.

Shapes: B batch, T tokens, N rows, H heads, S keys.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import Tensor

from actkit.core.edit import Edit
from actkit.core.errors import InputError
from actkit.core.inputs import Batch
from actkit.core.layout import axes_of, rows_first
from actkit.core.moment import Moment
from actkit.core.progress import track
from actkit.core.recording import Rows, valid_rows
from actkit.core.sites import Site

if TYPE_CHECKING:
    from actkit.core.model import Model


def batches(data: Any, size: int) -> Iterator[Any]:
    """Group single samples (texts, chats, images) into lists; pass whole batches on as they are.

    Args:
        data: An iterable of samples, or of batches (dicts, tensors with a batch axis, tuples).
        size: How many samples make a batch.
    """
    if isinstance(data, str | Mapping | Tensor | Batch):
        data = [data]
    if size < 1:
        raise InputError(f"a batch must have at least 1 sample, got {size}")
    items = iter(data)
    while group := list(islice(items, size)):
        whole = [isinstance(g, Mapping | Batch | tuple) or _has_batch_axis(g) for g in group]
        if any(whole):
            yield from group
        else:
            yield group


def _has_batch_axis(item: Any) -> bool:
    return isinstance(item, Tensor) and item.dim() > 1


def observe(
    model: "Model",
    data: Any,
    readings: Mapping[str, Sequence[Any]],
    batch_size: int,
    edits: Sequence[Edit],
) -> dict[str, list[Any]]:
    """Feed copies of the readings at every site that their names mean."""
    own: dict[str, list[Any]] = {}
    sites: dict[str, Site] = {}
    for names, templates in readings.items():
        for site in model.sites(names):
            sites[site.name] = site
            own.setdefault(site.name, []).extend(map(copy.deepcopy, templates))
    seen = 0

    def read(site: Site, x: Tensor, moment: Moment) -> None:
        acts, rows = flat_rows(site, x.detach(), moment)
        for reading in own[site.name]:
            reading.update(acts, rows.shifted(seen))

    for group in track(_lists(data, batch_size), "observing"):
        batch = model.encode(group)
        model.stream(batch, list(sites.values()), read, edits)
        seen += batch.num_samples
    if not seen:
        raise InputError("data must hold at least one sample, got none")
    return own


def _lists(data: Any, size: int) -> Iterable[Any]:
    """Return the batches, in a list where their number is known so that a bar can show it."""
    return list(batches(data, size)) if isinstance(data, list | tuple) else batches(data, size)


def rows_at(site: Site, x: Tensor, moment: Moment) -> Rows:
    """Return the rows of what was read at a site."""
    axes = site.axes or axes_of(x)
    if axes == "BCYX":
        return Rows.image(len(x), x.shape[2], x[0, 0, 0].numel())
    shape = rows_first(x, axes).shape
    tokens = x.shape[-2] if axes == "BTS" else shape[1]
    return moment.rows(shape[0], tokens)


def flat_rows(site: Site, x: Tensor, moment: Moment) -> tuple[Tensor, Rows]:
    """Return a site's valid rows and what they belong to, as `valid_rows` does."""
    return valid_rows(x, site.axes or axes_of(x), rows_at(site, x, moment))
