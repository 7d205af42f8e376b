"""Committed shards: checked once, then read in place through a memory map.

Shapes: N rows.
"""

import hashlib
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actkit.core.errors import DamagedError
from actkit.store._format import columns_of, head, starts
from actkit.store._manifest import Entry, Head, check_size
from actkit.store._open_shard import about

Ids = NDArray[np.int64]
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

    def __init__(self, folder: Path, entry: Entry, store: Head, check: bool) -> None:
        """Look at nothing yet."""
        self.path, self.entry = folder / entry.shard, entry
        self._store, self._check = store, check
        self._columns: dict[str, Tensor] | None = None

    def column(self, name: str) -> Tensor:
        """Return a column as it is stored, (N, ...), in place.

        Raises:
            DamagedError: The file is not what was committed.
        """
        if self._columns is None:
            self._columns = self._mapped()
        return self._columns[name]

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
        bounds: Index of each shard's first row, and the number of rows last.
    """

    def __init__(self, parts: Sequence[Shard]) -> None:
        """Number the rows."""
        self.parts = parts
        self.bounds: Ids = np.cumsum([0, *(p.entry.rows for p in parts)], dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.bounds[-1])

    def span(self, name: str, start: int, stop: int) -> Tensor:
        """Return consecutive rows of a column: in place where one shard has them all."""
        shards, bounds = self.overlap(start, stop)
        views = [
            self.parts[s].column(name)[max(start - low, 0) : stop - low]
            for s, low in zip(shards, bounds[shards.start :], strict=False)
        ]
        return views[0] if len(views) == 1 else torch.cat(views)

    def take(self, name: str, ids_N: Ids, room: Tensor | None = None) -> Tensor:
        """Return rows of a column by ascending index, copied.

        Args:
            name: The column.
            ids_N: Row indices, ascending.
            room: (N or more, bytes of a row) uint8 to write into; new memory if None.
        """
        shards, bounds = self.overlap(int(ids_N[0]), int(ids_N[-1]) + 1)
        cuts = np.searchsorted(ids_N, bounds[shards.start : shards.stop + 1])
        like = self.parts[shards.start].column(name)
        if room is None:
            room = torch.empty(len(ids_N), _bytes(like).shape[1], dtype=torch.uint8)
        for s, low, high in zip(shards, cuts[:-1], cuts[1:], strict=True):
            if high > low:
                index = torch.from_numpy(ids_N[low:high] - bounds[s])
                source = _bytes(self.parts[s].column(name))
                torch.index_select(source, 0, index, out=room[low:high])
        return room[: len(ids_N)].view(like.dtype).view(-1, *like.shape[1:])

    def overlap(self, start: int, stop: int) -> tuple[range, Ids]:
        """Return the shards that hold rows of a span, at least one, and all bounds."""
        first = int(np.searchsorted(self.bounds, start, side="right")) - 1
        last = int(np.searchsorted(self.bounds, max(stop, start + 1), side="left"))
        return range(first, max(last, first + 1)), self.bounds

    def touch(self, shards: Sequence[Shard]) -> None:
        """Check and map shards that were not read yet, several at once."""
        fresh = [s for s in shards if not s.touched]
        with ThreadPoolExecutor(CHECKERS) as pool:
            list(pool.map(lambda s: s.column("sample"), fresh))


def _bytes(x: Tensor) -> Tensor:
    """Return rows as (N, bytes), which every kernel knows how to copy."""
    return x.view(len(x), -1).view(torch.uint8) if x.dim() > 1 else x[:, None].view(torch.uint8)


def verify(shards: Sequence[Shard]) -> list[Any]:
    """Return one DamagedError for each shard that is not what was committed."""

    def problem(shard: Shard) -> DamagedError | None:
        try:
            shard.verify()
        except DamagedError as error:
            return error
        return None

    with ThreadPoolExecutor(CHECKERS) as pool:
        return [error for error in pool.map(problem, shards) if error is not None]
