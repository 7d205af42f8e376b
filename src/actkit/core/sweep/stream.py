"""Streams data through a network, batch by batch, in constant memory.

Shapes: B batch, T tokens, N rows, H heads, S keys.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import length_hint
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from actkit.core.edits.edit import Edit
from actkit.core.errors import ActkitError, InputError, SiteError
from actkit.core.progress import track
from actkit.core.run.chats import is_chat
from actkit.core.run.context import ForwardContext
from actkit.core.run.forms import LoadedBatch, num_rows
from actkit.core.run.inputs import Batch, Call
from actkit.core.run.on_bad import OnBad, Skipped
from actkit.core.run.recording import FACTS, Rows
from actkit.core.run.site_rows import flat_rows
from actkit.core.sites.site import Site

if TYPE_CHECKING:
    from actkit.core.run.runner import Runner


def batches(data: Any, size: int) -> Iterator[Any]:
    """Group single samples (texts, chats, images) into lists; pass whole batches on as they are.

    Args:
        data: An iterable of samples, or of batches (dicts, tensors with a batch axis, tuples, what
            a `DataLoader` gives), a `torch.utils.data.Dataset`, or a function that opens one.
        size: How many samples make a batch.
    """
    if size < 1:
        raise InputError(f"a batch must have at least 1 sample, got {size}")
    items = iter(_opened(data, size))
    loaded = isinstance(data, DataLoader | Dataset)
    while group := list(islice(items, 1 if loaded else size)):
        if loaded:
            yield from (LoadedBatch(g) if isinstance(g, list | tuple) else g for g in group)
        elif any(map(_is_whole, group)):
            yield from group
        else:
            yield group


def num_batches(data: Any, size: int) -> int | None:
    """Return how many batches data make, None where that is not known before they are read."""
    opened = _opened(data, size) if not callable(data) else data
    number = length_hint(opened, -1)
    if number < 0 or isinstance(opened, DataLoader):
        return number if number >= 0 else None
    held = isinstance(opened, list | tuple)
    return sum(1 for _ in batches(opened, size)) if held else -(-number // size)


def _opened(data: Any, size: int) -> Any:
    """Return what gives the samples or batches of data when it is iterated over."""
    if isinstance(data, str | Mapping | Tensor | Batch | Call):
        return [data]
    if hasattr(data, "iterrows") or hasattr(data, "iter_rows"):
        raise InputError(
            f"data must be one column of a data frame, got all of {list(data.columns)}: "
            "pass frame['text']"
        )
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return DataLoader(data, batch_size=size)
    return data() if callable(data) and not isinstance(data, Iterable) else data


def _is_whole(item: Any) -> bool:
    """Say whether an item of data is a batch, and not one sample."""
    if isinstance(item, Mapping):
        return not is_chat(item.get("messages"))
    chat = isinstance(item, tuple) and is_chat(item)
    return (isinstance(item, Batch | Call | tuple) and not chat) or _has_batch_axis(item)


def _has_batch_axis(item: Any) -> bool:
    return isinstance(item, Tensor) and item.dim() > 1


class Observed(dict[Any, list[Any]]):
    """Readings by site or by tuple of patterns, fed.

    Attributes:
        skipped: The samples that were left out, with the reasons.
    """

    def __init__(self, fed: Mapping[Any, list[Any]], skipped: Sequence[Skipped] = ()) -> None:
        """Hold the readings."""
        super().__init__(fed)
        self.skipped = list(skipped)


@dataclass(frozen=True)
class StreamPass:
    """How data are passed through a network; see `Model.observe`."""

    batch_size: int = 8
    edits: Sequence[Edit] = ()
    on_bad: str = "raise"


def observe(
    model: "Runner",
    data: Any,
    readings: Mapping[Any, Sequence[Any]],
    how: StreamPass,
    rank: int = 0,
    world: int = 1,
) -> Observed:
    """Feed copies of the readings: at every site that a name means, or at a tuple of sites.

    Only every `world`-th batch from `rank` on is run; samples count as if all were.
    """
    feeder, policy = Feeder(model, readings), OnBad(how.on_bad)
    total = num_batches(data, how.batch_size)
    groups = track(batches(data, how.batch_size), "observing", total, "batches")
    for _, parts in encoded(model, groups, lambda index: index % world == rank, policy):
        for batch, first in parts:
            feeder.take(batch, first, how.edits)
    policy.tell()
    return Observed(feeder.fed, policy.skipped)


def merged(shares: Sequence[Observed]) -> Observed:
    """Merge what several workers observed into the first."""
    whole, *others = shares
    for other in others:
        whole.skipped += other.skipped
        for key, readings in whole.items():
            for reading, more in zip(readings, other[key], strict=True):
                reading.merge(more)
    return whole


def encoded(
    model: "Runner", groups: Iterable[Any], wanted: Callable[[int], bool], policy: OnBad
) -> Iterator[tuple[Any, list[tuple[Batch, int]]]]:
    """Yield each group with what of it runs at once, if its index is wanted.

    That are batches, and the index of each one's first sample: one, unless samples were left out
    or rows run one by one.

    Raises:
        InputError: There is no group, or a sample that the network cannot take.
    """
    index, first = -1, 0
    for index, group in enumerate(groups):
        if isinstance(group, list):
            size = len(group)
            found = policy.encoded(model.encode, group, first) if wanted(index) else []
        else:  # others tell their number when encoded
            found = policy.whole(model.encode, group, first)
            size = found[0][0].num_samples if found else num_rows([group])
        alone = [_split(model, batch, start) for batch, start in found if wanted(index)]
        yield group, [part for parts in alone for part in parts]
        first += size
    if index < 0:
        raise InputError("data must hold at least one sample, got none")


def as_readings(readings: Any) -> list[Any]:
    """Return readings as a list; one reading alone is a list of one.

    Raises:
        InputError: Something among them is no reading.
    """
    alone = isinstance(readings, type) or not isinstance(readings, Iterable)
    found = [readings] if alone or hasattr(readings, "update") else list(readings)
    for reading in found:
        if isinstance(reading, type):
            name = reading.__name__
            raise InputError(f"a reading must be an instance, {name}(), got the class {name}")
        if not callable(getattr(reading, "update", None)) or isinstance(reading, dict | set):
            raise InputError(
                "a reading must have update(acts, rows), merge(other) and result(), "
                f"got {type(reading).__name__}"
            )
    return found


def _split(model: "Runner", batch: Batch, first: int) -> list[tuple[Batch, int]]:
    return [(part, first + i) for i, part in enumerate(model.encode.split(batch))]


class Feeder:
    """Hands what flows through a network to copies of readings.

    Attributes:
        fed: The copies, by site or by tuple of patterns.
    """

    def __init__(self, model: "Runner", readings: Mapping[Any, Sequence[Any]]) -> None:
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
                self.fed.setdefault(key, []).extend(map(copy.deepcopy, as_readings(templates)))
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
