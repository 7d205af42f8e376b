"""Committed shards: checked once, then read in place through a memory map.

Shapes: N rows.
"""

import hashlib
import mmap
from collections.abc import Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actkit.core.errors import DamagedError
from actkit.core.progress import track
from actkit.core.run.recording import FACTS
from actkit.store._format import Column, columns_of, head, starts
from actkit.store._manifest import Head, ShardEntry, check_size
from actkit.store._open_shard import about

Ids = NDArray[np.int64]
Bytes = NDArray[np.uint8]
CHECKERS = 4
"""Threads that hash; they run side by side because hashlib lets go of the interpreter."""


class Shard:
    """One immutable file of rows.

    Args:
        folder: Where it lies.
        entry: Its line in the manifest.
        store: The manifest's first line.
        check: Whether its SHA-256 is computed before the first row is read.
    """

    def __init__(self, folder: Path, entry: ShardEntry, store: Head, check: bool) -> None:
        """Look at nothing yet."""
        self.path, self.entry = folder / entry.shard, entry
        self._store, self._check = store, check
        self._columns: dict[str, Tensor] | None = None
        self._bytes: dict[str, Bytes] = {}

    def column(self, name: str) -> Tensor:
        """Return a column as it is stored, (N, ...), in place.

        Raises:
            DamagedError: The file is not what was committed.
        """
        if self._columns is None:
            self._columns = self._mapped()
        return self._columns[name]

    def bytes(self, name: str) -> Bytes:
        """Return a column in place as (N, bytes of a row), which any kernel can copy."""
        if name not in self._bytes:
            rows = self.column(name)
            self._bytes[name] = rows.reshape(len(rows), -1).view(torch.uint8).numpy()
        return self._bytes[name]

    @property
    def touched(self) -> bool:
        """Whether the shard was checked and mapped."""
        return self._columns is not None

    def verify(self) -> None:
        """Read the whole file and raise DamagedError if it is not what was committed."""
        check_size(self.path, self.entry)
        with self.path.open("rb") as file:
            self._compare(hashlib.file_digest(file, "sha256").hexdigest())

    def _mapped(self) -> dict[str, Tensor]:
        check_size(self.path, self.entry)
        columns = columns_of(self._store.sites, self._store.dtype)
        first = head(columns, self.entry.rows, about(self._store.store, self.entry.shard))
        with self.path.open("rb") as file:
            # Pages are copied on write: a view that is written to never changes the file.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if mapped[: len(first)] != first:
            raise DamagedError(f"{self.path}: the head is not of {self.entry.shard} of this store")
        if self._check:
            self._compare(hashlib.sha256(mapped).hexdigest())
        data = torch.frombuffer(mapped, dtype=torch.uint8)[len(first) :]
        rows, tensors = self.entry.rows, {}
        for column, start in zip(columns, starts(columns, rows), strict=True):
            flat = data[start : start + rows * column.row_bytes].view(column.dtype)
            tensors[column.name] = flat.view(rows, *column.shape)
        return tensors

    def _compare(self, sha256: str) -> None:
        if sha256 != self.entry.sha256:
            raise DamagedError(
                f"{self.path}: the shard must have SHA-256 {self.entry.sha256[:12]}, "
                f"got {sha256[:12]}"
            )


class Shards:
    """The shards of a store as one sequence of rows.

    Attributes:
        parts: The shards.
        columns: What each of them has, by name.
        bounds: Index of each shard's first row, and the number of rows last.
    """

    def __init__(self, parts: Sequence[Shard], columns: Iterable[Column]) -> None:
        """Number the rows."""
        self.parts, self.columns = parts, {column.name: column for column in columns}
        self.bounds: Ids = np.cumsum([0, *(p.entry.rows for p in parts)], dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.bounds[-1])

    def span(self, name: str, start: int, stop: int) -> Tensor:
        """Return consecutive rows of a column: in place where one shard has them all."""
        views = []
        for s in self.overlap(start, stop):
            low = int(self.bounds[s])
            views.append(self.parts[s].column(name)[max(start - low, 0) : max(stop - low, 0)])
        return views[0] if len(views) == 1 else torch.cat(views)

    def gather(self, name: str, ids_N: Ids) -> Tensor:
        """Return rows of a column by index, copied."""
        column = self.columns[name]
        order_N = np.argsort(ids_N, kind="stable")
        sorted_N = ids_N[order_N]
        taken = np.empty((len(ids_N), column.row_bytes), np.uint8)
        shards = self.overlap(int(sorted_N[0]), int(sorted_N[-1]) + 1)
        cuts = np.searchsorted(sorted_N, self.bounds[shards.start : shards.stop + 1])
        for s, low, high in zip(shards, cuts[:-1], cuts[1:], strict=True):
            if high > low:
                take(
                    self.parts[s].bytes(name), sorted_N[low:high] - self.bounds[s], taken[low:high]
                )
        ordered = np.empty_like(taken)
        take(taken, np.argsort(order_N), ordered)
        return as_rows(ordered, column)

    def overlap(self, start: int, stop: int) -> range:
        """Return which shards hold the rows of a span; the one at its start if it is empty."""
        inner = self.bounds[1:-1]
        first = int(np.searchsorted(inner, start, side="right"))
        return range(first, 1 + int(np.searchsorted(inner, max(stop - 1, start), side="right")))

    def touch(self, shards: Set[int]) -> None:
        """Check and map shards, several at once, where that was not done yet."""
        fresh = [self.parts[s] for s in sorted(shards) if not self.parts[s].touched]
        if fresh:
            with ThreadPoolExecutor(CHECKERS) as pool:
                done = pool.map(lambda shard: shard.column(FACTS[0]), fresh)
                for _ in track(done, "checking shards", len(fresh)):
                    pass


def take(rows: Bytes, index_N: Ids, out: Bytes) -> None:
    """Copy rows by index into `out`; every index must be in range."""
    # As single items of a row's size, rows are copied whole. "raise" would copy `out` once more.
    item = f"V{rows.shape[1]}"
    np.take(rows.view(item)[:, 0], index_N, out=out.view(item)[:, 0], mode="clip")


def as_rows(data: Bytes, column: Column) -> Tensor:
    """Return bytes as the rows that they are."""
    return torch.from_numpy(data).view(column.dtype).view(len(data), *column.shape)


def damages(shards: Sequence[Shard]) -> list[DamagedError]:
    """Return one error for each shard that is not what was committed."""

    def damage(shard: Shard) -> DamagedError | None:
        try:
            shard.verify()
        except DamagedError as error:
            return error
        return None

    with ThreadPoolExecutor(CHECKERS) as pool:
        found = list(track(pool.map(damage, shards), "verifying", len(shards)))
    return [error for error in found if error is not None]
