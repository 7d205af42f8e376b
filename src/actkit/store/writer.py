"""StoreWriter: rows go into an open shard; a commit makes it durable and immutable.

A shard is written to a temporary name, hashed, fsynced and renamed; then its line is appended to
the manifest and fsynced. A crash at any point loses at most what had no line yet.

Shapes: N rows.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from actkit.core.errors import DamagedError, StoreError
from actkit.core.run.recording import Rows
from actkit.store._disk import lock, sync_folder, write_all, writing
from actkit.store._format import columns_of, encode, encode_rows
from actkit.store._manifest import NAME, Head, Manifest, shard_name
from actkit.store._open_shard import OpenShard

SHARD_BYTES = 256 * 2**20


class StoreWriter:
    """Appends rows to a store on disk; one writer at a time.

    A folder that holds a store is resumed after its last committed shard: go on with the rows
    that follow `cursor`. Shards are cut only between two appends, and where they are cut depends
    on the appends alone, so a resumed store equals an uninterrupted one byte for byte.

    Use it as a context manager: leaving it commits the open shard, an exception discards it.
    Shards are closed in the background; what fails there is raised by the next call.

    Args:
        path: Folder of the store; made if it is not there.
        sites: Shape of one row at each site, such as `{"resid_post.10": (576,)}`.
        dtype: float32, float16, bfloat16, float8_e4m3, or int8 with a scale for each row.
        header: Provenance that can be written as JSON; a store is resumed with the same only.
        shard_bytes: A shard is closed before an append would carry it over this size; one append
            is never split, so a larger one makes a larger shard.

    Attributes:
        path: The folder.

    Raises:
        StoreError: The store was begun with other settings, is being written by another process,
            or cannot be written.
        DamagedError: The manifest or a committed shard is not what was written.

    Example:
        >>> import tempfile, torch
        >>> from actkit.core.run.recording import Rows
        >>> from actkit.store import Store
        >>> folder = tempfile.TemporaryDirectory()
        >>> with StoreWriter(folder.name, {"mlp_out.3": (2,)}, dtype="float32") as writer:
        ...     rows = Rows.of(torch.ones(1, 3, dtype=torch.bool)).flat()
        ...     writer.append({"mlp_out.3": torch.eye(3, 2)}, rows, cursor=1)
        >>> writer.num_rows, writer.cursor
        (3, 1)
        >>> Store(folder.name)["mlp_out.3"][1]
        tensor([0., 1.])
        >>> folder.cleanup()
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        sites: Mapping[str, Sequence[int]],
        dtype: str = "bfloat16",
        header: Mapping[str, Any] | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """Begin a store, or take up the one in the folder."""
        self.path = Path(path)
        self._columns = columns_of(sites, dtype)
        shapes = {site: tuple(shape) for site, shape in sites.items()}
        self._head = Head(shapes, dtype, shard_bytes, dict(header or {}))
        row_bytes = sum(column.row_bytes for column in self._columns)
        self._rows_per_shard = max(1, shard_bytes // row_bytes)
        first_line = self._head.line()
        with writing(self.path / NAME):
            self.path.mkdir(parents=True, exist_ok=True)
            self._file = (self.path / NAME).open("a+b", buffering=0)
        try:
            lock(self._file, self.path)
            manifest = self._begin(first_line)
        except BaseException:
            self._file.close()
            raise
        self._entries, self._size = manifest.entries, manifest.size
        self._last = manifest.last
        self._num_shards = len(self._entries)
        self._open: OpenShard | None = None
        self._background = ThreadPoolExecutor(1, "actkit-store")
        self._closing: Future[None] | None = None

    @property
    def num_rows(self) -> int:
        """Rows in committed shards."""
        return sum(entry.rows for entry in self._entries)

    @property
    def cursor(self) -> Any:
        """The cursor given with the last committed row, None at the beginning."""
        return self._entries[-1].cursor if self._entries else None

    def append(self, values: Mapping[str, Tensor], rows: Rows, cursor: Any = None) -> None:
        """Add rows at the end; they are durable once their shard is committed.

        Args:
            values: (N, ...) activations of every site.
            rows: What they belong to, (N,), all valid.
            cursor: A small JSON value: where to go on if these are the last committed rows.

        Raises:
            StoreError: Shapes or sites differ from the store's, a value does not fit the dtype,
                or the disk failed; after a failure of the disk the writer takes nothing more.
        """
        if self._file.closed:
            raise StoreError(f"rows can be appended to an open writer, {self.path} was closed")
        stored = self._encode(values, rows)
        if not len(rows):
            return
        try:
            if self._open is not None and not self._fits(self._open, rows):
                self._seal()
            if self._open is None:
                self._open = self._new_shard(len(rows))
            self._open.append(stored, len(rows), cursor, rows.grid)
        except BaseException:
            self.discard()
            raise

    def commit(self) -> None:
        """Close the open shard and return when all rows are durable."""
        try:
            if self._open is not None:
                self._seal()
            self._settle()
        except BaseException:
            self.discard()
            raise

    def close(self) -> None:
        """Commit, and let another writer in."""
        if not self._file.closed:
            self.commit()
            self.discard()

    def discard(self) -> None:
        """Drop the rows that are not committed, and let another writer in."""
        if self._open is not None:
            self._open.discard()
            self._open = None
        self._background.shutdown()
        self._file.close()

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Commit the open shard, or discard it after an exception."""
        if kind is None:
            self.close()
        else:
            self.discard()

    def _begin(self, first_line: bytes) -> Manifest:
        """Write the first line of a new manifest, or mend and check an old one."""
        path = self.path / NAME
        shards = sorted(self.path.glob("shard-*.safetensors*"))
        with writing(path):
            if b"\n" not in path.read_bytes():
                if shards:
                    raise DamagedError(f"{path}: the first line is missing beside {shards[0].name}")
                self._file.truncate(0)
                write_all(self._file, first_line)
                os.fsync(self._file.fileno())
                sync_folder(self.path)
            manifest = Manifest.read(self.path)
            manifest.head.check_same(self._head, path)
            manifest.check_sizes()
            self._file.truncate(manifest.size)
            os.fsync(self._file.fileno())
            committed = {entry.shard for entry in manifest.entries}
            for shard in shards:
                if shard.name not in committed:
                    shard.unlink()
        return manifest

    def _encode(self, values: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
        sites, dtype = self._head.sites, self._head.dtype
        if set(values) != set(sites):
            raise StoreError(f"every append has the sites {list(sites)}, got {list(values)}")
        stored = encode_rows(rows)
        for site, shape in sites.items():
            if len(values[site]) != len(rows):
                raise StoreError(
                    f"sites of one store share their rows, got {len(values[site])} at {site} "
                    f"for {len(rows)} rows; keep sites of other shapes in a store of their own"
                )
            stored |= encode(site, values[site], shape, dtype)
        return stored

    def _new_shard(self, rows: int) -> OpenShard:
        path = self.path / shard_name(self._num_shards)
        capacity = max(self._rows_per_shard, rows)
        return OpenShard(path, self._columns, capacity, self._head.store)

    def _fits(self, shard: OpenShard, rows: Rows) -> bool:
        return shard.rows + len(rows) <= self._rows_per_shard and shard.grid == rows.grid

    def _seal(self) -> None:
        """Hand the open shard to the background, after the one before it is committed."""
        self._settle()
        if self._open is not None:
            self._closing = self._background.submit(self._commit, self._open)
            self._open = None
            self._num_shards += 1

    def _settle(self) -> None:
        if self._closing is not None:
            self._closing.result()  # an interrupt leaves it, to be waited for again
            self._closing = None

    def _commit(self, shard: OpenShard) -> None:
        entry = shard.close()
        line = entry.line(self._head, self._last)
        with writing(self.path / NAME):
            try:
                write_all(self._file, line)
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(self._size)
                shard.discard()
                raise
        self._size, self._last = self._size + len(line), line
        self._entries.append(entry)
