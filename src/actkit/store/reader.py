"""Store: recordings on disk, read in place.

Shapes: N rows, D width.
"""

import os
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from actkit.core.errors import DamagedError, SiteError, StoreError
from actkit.core.run.recording import FACTS
from actkit.store._format import columns_of
from actkit.store._part_folders import PART, read_manifests
from actkit.store._shards import Shard, Shards, damages
from actkit.store._shuffle import shuffled
from actkit.store._view import ColumnView, RowsView

CHECKS = ("first_read", "never")
POOL = 12_288
"""Rows of a pool, unless 3 batches are more: 14 MB of 576 bfloat16, which a cache can hold."""


class Store:
    """Recordings on disk: what was committed when it was opened.

    Nothing but the manifest is read before it is asked for. The first read of each shard computes
    its SHA-256 (about a second for 1 to 2 GB, once for each opened store), so a damaged shard
    raises and never returns wrong rows; `check="never"` leaves that to `verify`, and looks at the
    file's size and head only.

    Args:
        path: Folder of the store, or of the parts that several processes wrote.
        check: "first_read" or "never".
        unfinished: Also read parts of which rows are still missing, since their harvest goes on
            or stopped early.

    Attributes:
        path: The folder.
        sites: Shape of one row at each site.
        dtype: How activations are stored.
        header: Provenance, as given to the writer.
        rows: What the rows belong to, indexed like a tensor: `store.rows[:100]` is `Rows`.

    Raises:
        StoreError: There is no store, or a part of it is missing or unfinished.
        DamagedError: The manifest is not what was written.
    """

    def __init__(
        self, path: str | os.PathLike[str], check: str = "first_read", unfinished: bool = False
    ) -> None:
        """Read the manifest."""
        if check not in CHECKS:
            raise StoreError(f"check must be one of {', '.join(CHECKS)}, got {check!r}")
        self.path, self._check, self._unfinished = Path(path), check, unfinished
        manifests = read_manifests(self.path, unfinished)
        head = manifests[0].head.without(PART)
        self.sites, self.dtype, self.header = head.sites, head.dtype, head.header
        shards = [
            Shard(manifest.folder, entry, manifest.head, check == "first_read")
            for manifest in manifests
            for entry in manifest.entries
        ]
        self._shards = Shards(shards, columns_of(self.sites, self.dtype))
        self.rows = RowsView(self._shards)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._shards)

    def __repr__(self) -> str:
        """Return path, rows and sites."""
        sites = ", ".join(f"{site} {shape}" for site, shape in self.sites.items())
        return f"Store({str(self.path)!r}, {len(self)} rows, {self.dtype}: {sites})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process open the store for itself."""
        return type(self), (self.path, self._check, self._unfinished)

    def __getitem__(self, site: str) -> ColumnView:
        """Return a site's (N, ...) rows, or those of "sample", "position" or "token".

        Raises:
            SiteError: The store does not have it; the message lists the nearest names.
        """
        names = [*self.sites, *FACTS]
        if site not in names:
            near = get_close_matches(site, names, n=3) or names[:3]
            raise SiteError(f"site {site!r} is not in {self.path}; nearest: {', '.join(near)}")
        return ColumnView(self._shards, site)

    def batches(
        self,
        sites: str | Sequence[str],
        size: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        pool: int | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """Iterate over all rows once, in batches by site.

        Shuffled batches are copies: blocks of 256 rows are drawn from all shards into a pool, and
        rows from the pool. Batches in the order of the rows are views where they can be.

        Args:
            sites: One or several; also "sample", "position" and "token", if they are named.
            size: Rows of a batch.
            shuffle: Whether to mix the rows; the order depends on `seed`, `size` and `pool`.
            seed: Of the order; give each epoch its own.
            drop_last: Leave out the last batch if it has fewer rows.
            pool: Most rows that are mixed with each other (>= size), held in memory with all sites
                that are asked for; None for 12,288, or 3 batches if that is more. A larger pool
                mixes better and is slower: 65,536 rows of 576 took 2.4 times as long.
        """
        views = {name: self[name] for name in ([sites] if isinstance(sites, str) else sites)}
        if not views:
            raise StoreError("a batch holds at least one site, got none")
        pool = max(POOL, 3 * size) if pool is None else pool
        if not 1 <= size <= pool:
            raise StoreError(f"a batch has 1 row to as many as the pool ({pool}), got {size}")
        num_batches = len(self) // size if drop_last else -(-len(self) // size)
        if not shuffle:
            return (
                {name: view.span(i, min(i + size, len(self))) for name, view in views.items()}
                for i in range(0, num_batches * size, size)
            )
        stored = [name for view in views.values() for name in view.stored]
        return (
            {name: view.decoded(drawn.__getitem__) for name, view in views.items()}
            for drawn in islice(shuffled(self._shards, stored, size, pool, seed), num_batches)
        )

    def verify(self) -> None:
        """Read every shard and compare its SHA-256 with the manifest.

        Raises:
            DamagedError: Names every shard that is not what was committed.
        """
        if found := damages(self._shards.parts):
            raise DamagedError("; ".join(str(error) for error in found))
