"""Streams data through a network, batch by batch, in constant memory.

Shapes: B batch, T tokens, N rows, H heads, S keys.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from actkit.core.context import ForwardContext
from actkit.core.edit import Edit
from actkit.core.errors import ActkitError, InputError, SiteError
from actkit.core.inputs import Batch
from actkit.core.layout import axes_of, rows_first
from actkit.core.progress import track
from actkit.core.recording import FACTS, Rows, valid_rows
from actkit.core.sites import Site

if TYPE_CHECKING:
    from actkit.core.model import Model


def batches(data: Any, size: int) -> Iterator[Any]:
    """Group single samples (texts, chats, images) into lists; pass whole batches on as they are.

    Args:
        data: An iterable of samples, or of batches (dicts, tensors with a batch axis, tuples),
            or a function that opens one.
        size: How many samples make a batch.
    """
    if isinstance(data, str | Mapping | Tensor | Batch):
        data = [data]
    if size < 1:
        raise InputError(f"a batch must have at least 1 sample, got {size}")
    if callable(data) and not isinstance(data, Iterable):
        data = data()
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
    readings: Mapping[Any, Sequence[Any]],
    batch_size: int,
    edits: Sequence[Edit],
    rank: int = 0,
    world: int = 1,
) -> dict[Any, list[Any]]:
    """Feed copies of the readings: at every site that a name means, or at a tuple of sites.

    Only every `world`-th batch from `rank` on is run; samples count as if all were.
    """
    feeder = Feeder(model, readings)
    groups = track(_lists(data, batch_size), "observing")
    for _, batch, first in encoded(model, groups, lambda index: index % world == rank):
        if batch is not None:
            feeder.take(batch, first, edits)
    return feeder.fed


def merged(shares: Sequence[dict[Any, list[Any]]]) -> dict[Any, list[Any]]:
    """Merge what several workers observed into the first."""
    whole, *others = shares
    for other in others:
        for key, readings in whole.items():
            for reading, more in zip(readings, other[key], strict=True):
                reading.merge(more)
    return whole


def encoded(
    model: "Model", groups: Iterable[Any], wanted: Callable[[int], bool]
) -> Iterator[tuple[Any, Batch | None, int]]:
    """Yield each group, its batch if its index is wanted, and the index of its first sample.

    Raises:
        InputError: There is no group.
    """
    index, first = -1, 0
    for index, group in enumerate(groups):
        if wanted(index) or not isinstance(group, list):  # others tell their number when encoded
            batch = model.encode(group)
            yield group, batch if wanted(index) else None, first
            first += batch.num_samples
        else:
            yield group, None, first
            first += len(group)
    if index < 0:
        raise InputError("data must hold at least one sample, got none")


class Feeder:
    """Hands what flows through a network to copies of readings.

    Attributes:
        fed: The copies, by site or by tuple of patterns.
    """

    def __init__(self, model: "Model", readings: Mapping[Any, Sequence[Any]]) -> None:
        """Find the sites and copy the readings."""
        self.fed: dict[Any, list[Any]] = {}
        self._model = model
        self._sites: dict[str, Site] = {}
        self._joint: dict[tuple[str, ...], tuple[str, ...]] = {}
        for names, templates in readings.items():
            joint = isinstance(names, tuple)
            found = [s for name in (names if joint else [names]) for s in model.sites(name)]
            self._sites |= {s.name: s for s in found}
            if joint:
                self._joint[names] = tuple(s.name for s in found)
            for key in [names] if joint else [s.name for s in found]:
                self.fed.setdefault(key, []).extend(map(copy.deepcopy, templates))
        self._wanted = {name for names in self._joint.values() for name in names}

    def take(self, batch: Batch, first: int = 0, edits: Sequence[Edit] = ()) -> None:
        """Run one batch, whose samples count from `first` on.

        What is read together is held until the last of its sites has run.
        """
        held: dict[str, tuple[Tensor, Rows]] = {}
        waiting = dict(self._joint)

        def read(site: Site, x: Tensor, context: ForwardContext) -> None:
            acts, own = flat_rows(site, x.detach(), context)
            own = own.shifted(first)
            for reading in self.fed.get(site.name, ()):
                reading.update(acts, own)
            if site.name in self._wanted:
                # Networks without a table may overwrite in place what they passed on.
                held[site.name] = acts.clone() if site.stack is None else acts, own
                for patterns in [p for p, names in waiting.items() if held.keys() >= {*names}]:
                    self._join(patterns, held)
                    del waiting[patterns]
                needed = {name for names in waiting.values() for name in names}
                for name in held.keys() - needed:
                    del held[name]

        self._model.stream(batch, list(self._sites.values()), read, edits)
        for names in waiting.values():
            silent = next(name for name in names if name not in held)
            raise SiteError(f"sites that are read together must run, {silent} did not")

    def _join(self, patterns: tuple[str, ...], held: Mapping[str, tuple[Tensor, Rows]]) -> None:
        names = self._joint[patterns]
        shared = shared_rows({name: held[name][1] for name in names}, "reading", InputError)
        for reading in self.fed[patterns]:
            reading.update([held[name][0] for name in names], shared)


def shared_rows(rows: Mapping[str, Rows], what: str, error: type[ActkitError]) -> Rows:
    """Return the rows of all sites; raise `error` if they are not the same."""
    (first, main), *others = rows.items()
    for site, own in others:
        facts = ((getattr(own, fact), getattr(main, fact)) for fact in FACTS)
        if len(own) != len(main) or not all(torch.equal(a, b) for a, b in facts):
            raise error(
                f"sites of one {what} share their rows, {first} has {len(main)} and {site} has "
                f"{len(own)} or others: give each a {what} of its own"
            )
    return main


def _lists(data: Any, size: int) -> Iterable[Any]:
    """Return the batches, in a list where their number is known so that a bar can show it."""
    return list(batches(data, size)) if isinstance(data, list | tuple) else batches(data, size)


def rows_at(site: Site, x: Tensor, context: ForwardContext) -> Rows:
    """Return the rows of what was read at a site."""
    axes = site.axes or axes_of(x)
    if axes == "BCYX":
        return Rows.image(len(x), x.shape[2], x[0, 0, 0].numel(), x.device)
    shape = rows_first(x, axes).shape
    tokens = x.shape[-2] if axes == "BTS" else shape[1]
    return context.rows(shape[0], tokens)


def flat_rows(site: Site, x: Tensor, context: ForwardContext) -> tuple[Tensor, Rows]:
    """Return a site's valid rows and what they belong to, as `valid_rows` does."""
    return valid_rows(x, site.axes or axes_of(x), rows_at(site, x, context))
