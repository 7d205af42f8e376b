"""What a store hands out: one site, or what the rows belong to, over all shards.

Shapes: N rows.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from actkit.core.run.recording import FACTS, Rows
from actkit.store._format import SCALE, decode
from actkit.store._shards import Ids, Shards

Index = int | slice | list[int] | Tensor | Ids


class ColumnView:
    """One site's rows on disk, indexed like a tensor's first axis; nothing is read before.

    A slice inside one shard is a view of the file; one over several shards, and rows by index,
    are copies. What a view is given in place stays in this process and never reaches the file.
    int8 and float8 come as float32; `raw` has them as they are stored.

    Attributes:
        name: The site.
        raw: The same rows as they are stored.
    """

    def __init__(self, shards: Shards, name: str, raw: bool = False) -> None:
        """Hold what is needed to read."""
        self.name, self._shards, self._raw = name, shards, raw
        self._column = shards.columns[name]

    @property
    def shape(self) -> torch.Size:
        """The shape of all rows, (N, ...)."""
        return torch.Size([len(self._shards), *self._column.shape])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which rows come."""
        coded = self._column.dtype in (torch.int8, torch.float8_e4m3fn)
        return torch.float32 if coded and not self._raw else self._column.dtype

    @property
    def raw(self) -> "ColumnView":
        """The same rows as they are stored."""
        return ColumnView(self._shards, self.name, raw=True)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._shards)

    def __repr__(self) -> str:
        """Return the site, its shape and its dtype."""
        return f"{type(self).__name__}({self.name!r}, {tuple(self.shape)}, {str(self.dtype)[6:]})"

    def __getitem__(self, index: Index) -> Tensor:
        """Return rows by an index, a slice, a list or tensor of indices, or a mask.

        Raises:
            IndexError: No such row.
            DamagedError: The shard is not what was committed.
        """
        if isinstance(index, int):
            row = int(resolve(index, len(self))[0])
            return self[row : row + 1][0]
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self.span(start, stop)
        ids_N = resolve(index, len(self))
        if not len(ids_N):
            return self.span(0, 0)
        return self.decoded(lambda name: self._shards.gather(name, ids_N))

    def span(self, start: int, stop: int) -> Tensor:
        """Return consecutive rows, in place where one shard has them all."""
        if start >= stop:
            return torch.empty(0, *self._column.shape, dtype=self.dtype)
        return self.decoded(lambda name: self._shards.span(name, start, stop))

    def decoded(self, read: Callable[[str], Tensor]) -> Tensor:
        """Return rows as they are handed out, from a function that reads a column as stored."""
        stored, *scale = [read(name) for name in self.stored]
        return stored if self._raw else decode(stored, *scale)

    @property
    def stored(self) -> list[str]:
        """The columns that are read for this one."""
        scale = self.name + SCALE
        scaled = scale in self._shards.columns and not self._raw
        return [self.name, scale] if scaled else [self.name]


class RowsView:
    """What the rows of a store belong to, indexed like a tensor; nothing is read before."""

    def __init__(self, shards: Shards) -> None:
        """Hold what is needed to read."""
        self._views = [ColumnView(shards, name) for name in FACTS]
        grids = {part.entry.grid for part in shards.parts}
        self._grid = grids.pop() if len(grids) == 1 else None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._views[0])

    def __getitem__(self, index: Index) -> Rows:
        """Return rows by an index, a slice, a list or tensor of indices, or a mask."""
        sample, position, token = (view[index] for view in self._views)
        valid = torch.ones_like(sample, dtype=torch.bool)
        return Rows(valid, sample, position, token, self._grid)


def resolve(index: Index, num_rows: int) -> Ids:
    """Return the row indices that an index means, counted from 0.

    Raises:
        IndexError: There is no such row, or the index is none.
    """
    if isinstance(index, slice):
        return np.arange(*index.indices(num_rows))
    found = np.atleast_1d(np.asarray(index))
    if found.dtype == bool:
        if found.shape != (num_rows,):
            raise IndexError(f"a mask covers all {num_rows} rows, got shape {found.shape}")
        return np.flatnonzero(found)
    if found.ndim != 1 or not (np.issubdtype(found.dtype, np.integer) or not found.size):
        raise IndexError(f"rows are indexed by integers, got {found.dtype} {found.shape}")
    ids_N = found.astype(np.int64)
    if len(ids_N) and not -num_rows <= ids_N.min() <= ids_N.max() < num_rows:
        worst = max(ids_N.max(), -ids_N.min() - 1)
        raise IndexError(f"row indices must be below {num_rows}, got {worst}")
    return ids_N % num_rows if num_rows else ids_N
