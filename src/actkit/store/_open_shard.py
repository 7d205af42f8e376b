"""The shard that a writer is filling: columns in a temporary file, then one immutable file.

Columns are spaced for as many rows as may come. Closing moves them together while it hashes, so
memory holds one piece at a time however large the shard is.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, uint8

from actkit.core.errors import StoreError
from actkit.store._disk import read_all, sync_folder, write_all, writing
from actkit.store._format import Column, head, starts
from actkit.store._manifest import ShardEntry

TEMPORARY = ".tmp"
PIECE = 4 * 2**20
"""Bytes that are hashed and moved at once."""


class OpenShard:
    """Rows that are not committed yet.

    Args:
        path: The name that the shard gets when it is committed.
        columns: Its columns in file order.
        capacity: The most rows that it may take.
        store: The store's identity, written into the shard.

    Attributes:
        rows: The number of rows so far.
        grid: (height, width) if the rows belong to images.
    """

    def __init__(self, path: Path, columns: Sequence[Column], capacity: int, store: str) -> None:
        """Open the temporary file."""
        self.rows = 0
        self.grid: tuple[int, int] | None = None
        self._cursor: Any = None
        self._path, self._columns, self._capacity = path, columns, capacity
        self._about = about(store, path.name)
        self._base = len(head(columns, 0, self._about))
        self._temporary = path.with_name(path.name + TEMPORARY)
        with writing(self._temporary):
            self._file = self._temporary.open("w+b", buffering=0)

    def append(
        self,
        stored: Mapping[str, Tensor],
        rows: int,
        cursor: Any,
        grid: tuple[int, int] | None,
    ) -> None:
        """Write encoded rows into each column."""
        with writing(self._temporary):
            for column, start in zip(self._columns, self._spaced(), strict=True):
                self._file.seek(start + self.rows * column.row_bytes)
                flat = stored[column.name].cpu().contiguous().reshape(-1)
                write_all(self._file, flat.view(uint8).numpy().data)
        self.rows += rows
        self._cursor, self.grid = cursor, grid

    def close(self) -> ShardEntry:
        """Make the shard durable under its own name; return its line for the manifest.

        After an error nothing of it is left.
        """
        digest = hashlib.sha256()
        try:
            with writing(self._temporary):
                size = self._pack(digest)
                self._file.truncate(size)
                os.fsync(self._file.fileno())
                self._file.close()
                self._temporary.rename(self._path)
                sync_folder(self._path.parent)
        except StoreError:
            self.discard()
            raise
        name, sha256 = self._path.name, digest.hexdigest()
        return ShardEntry(name, self.rows, size, sha256, self._cursor, self.grid)

    def discard(self) -> None:
        """Remove whatever was written, under either name."""
        self._file.close()
        for path in (self._temporary, self._path):
            with suppress(FileNotFoundError):
                path.unlink()

    def _spaced(self) -> list[int]:
        return [self._base + start for start in starts(self._columns, self._capacity)]

    def _pack(self, digest: "hashlib._Hash") -> int:
        """Write the head, close the gaps between the columns and hash all; return the size."""
        first = head(self._columns, self.rows, self._about)
        self._file.seek(0)
        write_all(self._file, first)
        digest.update(first)
        size = len(first)
        buffer = memoryview(bytearray(PIECE))
        for column, start in zip(self._columns, self._spaced(), strict=True):
            length = self.rows * column.row_bytes
            self._move(start, size, length, buffer, digest)
            size += length
        return size

    def _move(
        self, source: int, target: int, length: int, buffer: memoryview, digest: "hashlib._Hash"
    ) -> None:
        """Hash a stretch of the file and bring it forward to `target` where it is not there."""
        for done in range(0, length, len(buffer)):
            piece = buffer[: min(len(buffer), length - done)]
            self._file.seek(source + done)
            read_all(self._file, piece)
            digest.update(piece)
            if source != target:
                self._file.seek(target + done)
                write_all(self._file, piece)


def about(store: str, shard: str) -> dict[str, str]:
    """Return the metadata inside a shard, by which a foreign one is told."""
    return {"format": "pt", "store": store, "shard": shard}
