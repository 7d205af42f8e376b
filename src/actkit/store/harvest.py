"""Harvest: run a corpus through a model and keep what flows at its sites in a store.

Shapes: N rows.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from actkit.core.digest import digest
from actkit.core.edits.edit import Edit, as_edits
from actkit.core.engines.engine import run_shares
from actkit.core.engines.settings import Ray
from actkit.core.errors import BusyError, DataError, InputError, StoreError
from actkit.core.progress import note, track
from actkit.core.provenance import stamp
from actkit.core.run.context import ForwardContext
from actkit.core.run.inputs import Batch
from actkit.core.run.on_bad import OnBad
from actkit.core.run.recording import Rows
from actkit.core.run.site_rows import flat_rows
from actkit.core.sites.site import Site
from actkit.core.sweep.stream import batches, encoded, shared_rows
from actkit.core.sweep.stream import num_batches as num_batches_of
from actkit.store._manifest import NAME, Manifest, ShardEntry, begun, changed
from actkit.store._part_folders import PART, check_alone, finish, part_name
from actkit.store.reader import Store
from actkit.store.writer import SHARD_BYTES, StoreWriter

if TYPE_CHECKING:
    from actkit.core.run.runner import Runner

Piece = tuple[dict[str, Tensor], Rows, Any]
"""(N, ...) activations by site, their (N,) rows, and the cursor behind them."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that one harvest depends on; what an engine is given.

    Args:
        model: The network.
        data: An iterable of samples or batches, as in `observe`; the same again when resumed.
        record: Sites or patterns.
        to: Folder of the store.
        batch_size: How many samples to run at once.
        dtype: How activations are stored; see `StoreWriter`.
        shard_bytes: See `StoreWriter`.
        edits: Applied in every run.
        on_bad: "raise": the first sample that the network cannot take ends the harvest, with
            what was read before it kept; "skip": it is left out, and named in the end.
    """

    model: "Runner"
    data: Any
    record: str | Site | Sequence[str | Site]
    to: Path
    batch_size: int = 8
    dtype: str = "bfloat16"
    shard_bytes: int = SHARD_BYTES
    edits: Sequence[Edit] = ()
    on_bad: str = "raise"

    def sites(self) -> list[Site]:
        """Return the sites that are meant, each once."""
        given = [self.record] if isinstance(self.record, str | Site) else self.record
        patterns = [each.name if isinstance(each, Site) else each for each in given]
        found = {site.name: site for pattern in patterns for site in self.model.sites(pattern)}
        if not found:
            raise StoreError("a harvest records at least one site, got none")
        return list(found.values())

    def header(self) -> dict[str, Any]:
        """Return the provenance; the data's hash is None if they can be read only once."""
        held = isinstance(self.data, str | Sequence | Mapping | Tensor)
        known = getattr(self.data, "hash", None)
        data = known if isinstance(known, str) else digest(self.data) if held else None
        edits = digest(list(self.edits)) if self.edits else None
        return stamp(self.model, data=data, edits=edits, batch_size=self.batch_size)

    def pieces(self, cursor: Any = None, rank: int = 0, world: int = 1) -> Iterator[Piece]:
        """Run the batches behind a cursor, every `world`-th from `rank` on.

        Raises:
            StoreError: The data before the cursor are not those that were harvested.
        """
        done = cursor or {"batches": 0, "sha256": ""}
        sites, sha256, num_batches = self.sites(), "", 0

        def own(index: int) -> bool:
            return index % world == rank and index >= done["batches"]

        policy = OnBad(self.on_bad)
        total = num_batches_of(self.data, self.batch_size)
        groups = track(batches(self.data, self.batch_size), "harvesting", total, "batches")
        for index, (group, parts) in enumerate(encoded(self.model, groups, own, policy)):
            num_batches, sha256 = index + 1, digest([sha256, group])
            if num_batches == done["batches"]:
                _check_data(done, sha256)
            found = [(*self._run(batch, sites), first) for batch, first in parts]
            if found:
                cursor = {"batches": num_batches, "sha256": sha256}
                yield *_one_piece(found), cursor
        policy.tell()
        if num_batches < done["batches"]:
            raise StoreError(
                f"data must hold what was harvested, {done['batches']} batches, got {num_batches}"
            )
        if num_batches <= rank:
            raise InputError(f"data must have a batch for each of {world} parts, got {num_batches}")

    def _run(self, batch: Batch, sites: Sequence[Site]) -> tuple[dict[str, Tensor], Rows]:
        """Run one batch and return each site's valid rows, and what they belong to."""
        values: dict[str, Tensor] = {}
        rows: dict[str, Rows] = {}

        def read(site: Site, x: Tensor, context: ForwardContext) -> None:
            acts, rows[site.name] = flat_rows(site, x.detach(), context)
            # Networks without a table may overwrite in place what they passed on.
            values[site.name] = acts.clone() if site.stack is None else acts

        self.model.stream(batch, sites, read, self.edits)
        if silent := [site.name for site in sites if site.name not in values]:
            raise StoreError(f"a site to harvest must run, {', '.join(silent)} did not")
        return values, shared_rows(rows, "store", StoreError)


def _one_piece(
    parts: Sequence[tuple[dict[str, Tensor], Rows, int]],
) -> tuple[dict[str, Tensor], Rows]:
    """Return what parts of one batch have as one: a store is cut between batches only."""
    values, shifted = [p[0] for p in parts], [rows.shifted(first) for _, rows, first in parts]
    if len(parts) == 1:
        return values[0], shifted[0]
    for site in values[0]:
        if len(shapes := {tuple(v[site].shape[1:]) for v in values}) > 1:
            raise StoreError(f"rows of one store have one shape, {site} has {sorted(shapes)}")
    rows = Rows(
        valid=torch.cat([own.valid for own in shifted]),
        sample=torch.cat([own.sample for own in shifted]),
        position=torch.cat([own.position for own in shifted]),
        token=torch.cat([own.token for own in shifted]),
        grid=shifted[0].grid,
    )
    return {site: torch.cat([v[site] for v in values]) for site in values[0]}, rows


Engine = Callable[[Job], Store]
PATIENCE = 60.0
"""Seconds that a worker waits for the one before it to let go of a part."""


def harvest(
    model: "Runner",
    data: Any,
    record: str | Site | Sequence[str | Site],
    to: str | os.PathLike[str],
    engine: str | Ray = "local",
    **settings: Any,
) -> Store:
    """Record a corpus to disk; called again, it goes on after the last committed shard.

    Args:
        model: The network.
        data: As in `observe`.
        record: Sites or patterns; they must have the same rows.
        to: Folder of the store.
        engine: "local"; "torchrun": started by torchrun, each process runs its share of the
            batches, writes a part of its own and returns its store, and `Store(to)` reads all
            parts as one store, by rank; "ray", or `ak.Ray` with settings: the
            same by workers of a cluster whose machines share the folder, as many again when it
            is resumed; it returns the whole store.
        settings: batch_size, dtype, shard_bytes, edits, on_bad; see `Job`.

    Raises:
        StoreError: An unknown engine; a store begun with other settings, weights or data; the
            disk failed.
        EngineError: Ray is not installed, or a worker died too often.
    """
    settings = {**settings, "edits": as_edits(settings.get("edits", ()))}
    job = Job(model=model, data=data, record=record, to=Path(to), **settings)
    if isinstance(engine, Ray):
        return _ray(job, engine)
    if engine not in ENGINES:
        raise StoreError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    return ENGINES[engine](job)


def write_stream(
    path: Path,
    produce: Callable[[Any], Iterable[Piece]],
    sites: Sequence[str],
    dtype: str = "bfloat16",
    header: dict[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Store:
    """Write all that a stream produces, or what is missing of it.

    Args:
        path: Folder of the store.
        produce: Takes the cursor behind which to go on, None at the beginning.
        sites: What each piece holds; the first piece tells their shapes.
        dtype: As for `StoreWriter`.
        header: As for `StoreWriter`.
        shard_bytes: As for `StoreWriter`.
    """
    if begun(path):
        shapes = Manifest.read(path).head.sites
        if list(shapes) != list(sites):
            raise changed("sites", list(shapes), list(sites), path / NAME)
        with StoreWriter(path, shapes, dtype, header, shard_bytes) as writer:
            _write(writer, produce(writer.cursor))
        return Store(path)
    pieces = iter(produce(None))
    first = next(pieces, None)
    if first is None:
        raise StoreError(f"a store needs rows, got none for {path}")
    shapes = {site: tuple(first[0][site].shape[1:]) for site in sites}
    with StoreWriter(path, shapes, dtype, header, shard_bytes) as writer:
        _write(writer, chain([first], pieces))
    return Store(path)


def _write(writer: StoreWriter, pieces: Iterable[Piece]) -> None:
    """Write pieces; Ctrl-C and bad samples end it with all that came before them committed."""
    try:
        for values, rows, cursor in pieces:
            with uninterrupted():
                writer.append(values, rows, cursor)
    except (KeyboardInterrupt, InputError, DataError):
        writer.commit()
        kept = f"{writer.num_rows} rows of {(writer.cursor or {}).get('batches', 0)} batches"
        note(f"{writer.path} keeps {kept}; the same call goes on from there")
        raise


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until what is inside is done; other threads never see it."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    held: list[Any] = []
    signal.signal(signal.SIGINT, lambda *call: held.append(call))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        before(*held[0])


def _local(job: Job) -> Store:
    names = [site.name for site in job.sites()]
    check_alone(job.to, None)
    return write_stream(job.to, job.pieces, names, job.dtype, job.header(), job.shard_bytes)


def _torchrun(job: Job) -> Store:
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise StoreError(
            "engine torchrun needs the environment of torchrun, RANK is not set; "
            "run: torchrun --nproc-per-node 2 script.py"
        )
    return _part(job, job.header(), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def _ray(job: Job, engine: str | Ray = "ray") -> Store:
    job = replace(job, to=job.to.absolute())
    written = run_shares(partial(_shards, job, job.header()), engine, "harvesting")
    for rank, entries in enumerate(written):
        part = job.to / part_name(rank, len(written))
        if not begun(part) or Manifest.read(part).entries != entries:
            raise StoreError(f"all machines must share the store's folder, {part} is not here")
    return Store(job.to)


ENGINES: dict[str, Engine] = {"local": _local, "torchrun": _torchrun, "ray": _ray}
"""What runs a job and returns its store, by name."""


def _shards(job: Job, header: dict[str, Any], rank: int, world: int) -> list[ShardEntry]:
    """Write a part on a worker; return name, size and hash of its shards.

    A process may outlive the loss of its machine by some seconds, and still hold its part.
    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return Manifest.read(_part(job, header, rank, world).path).entries
        except BusyError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _part(job: Job, header: dict[str, Any], rank: int, world: int) -> Store:
    check_alone(job.to, world)
    name = part_name(rank, world)
    names = [site.name for site in job.sites()]
    produce = partial(job.pieces, rank=rank, world=world)
    part, own = job.to / name, {**header, PART: name}
    store = write_stream(part, produce, names, job.dtype, own, job.shard_bytes)
    finish(part)
    return store


def _check_data(done: dict[str, Any], sha256: str) -> None:
    if done["sha256"] != sha256:
        raise StoreError(
            f"a store is resumed with the data it was begun with: the first {done['batches']} "
            f"batches had SHA-256 {done['sha256'][:12]}, got {sha256[:12]}"
        )
