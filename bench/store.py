"""Shuffled reading against a plain memcpy of the same bytes, in one process.

Both read the same memory-mapped shards, warm in the page cache and checked before.
"""

import ctypes
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from actkit.core.run.recording import Rows
from actkit.store import Store, StoreWriter
from bench._measure import Row, paired, row

SITE, WIDTH, SIZE = "resid_post.10", 576, 4096
NUM_BATCHES = 96


def run() -> list[Row]:
    """Measure an epoch of shuffled batches over a store of two shards, 432 MB."""
    with tempfile.TemporaryDirectory() as folder:
        store = written(Path(folder) / "store")
        store.verify()
        return [shuffled(store)]


def written(folder: Path) -> Store:
    """Write the rows; their values do not matter."""
    acts = torch.randn(SIZE, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
    rows = Rows.of(torch.ones(1, SIZE, dtype=torch.bool)).flat()
    with StoreWriter(folder, {SITE: (WIDTH,)}) as writer:
        for index in range(NUM_BATCHES):
            writer.append({SITE: acts + index}, rows.shifted(index))
    return Store(folder)


def shuffled(store: Store) -> Row:
    """Compare an epoch with one memcpy for each batch, into memory that is written again."""
    ratios = [1 / r for r in paired(lambda: epoch(store), copying(store), 9)]
    num_shards = len(list(store.path.glob("shard-*")))
    return row(
        f"store.batches(shuffle=True), {SIZE} x {WIDTH} bfloat16 of {num_shards} shards, "
        "bandwidth over memcpy",
        ratios,
        ">= 0.3",
        "0.5: each byte is copied twice, into the pool and out of it",
        "memcpy on one core, batches on two",
    )


def epoch(store: Store) -> None:
    """Go through all rows in random order."""
    for _ in store.batches(SITE, SIZE):
        pass


def copying(store: Store) -> Callable[[], None]:
    """Return a job that copies the same bytes with the C library's memcpy."""
    batches = [b[SITE] for b in store.batches(SITE, SIZE, shuffle=False)]
    target = torch.empty(SIZE, WIDTH, dtype=torch.bfloat16)

    def copy() -> None:
        for batch in batches:
            ctypes.memmove(target.data_ptr(), batch.data_ptr(), batch.numel() * 2)

    return copy
