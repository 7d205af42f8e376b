"""Batches in random order, from a pool that is filled with blocks of many shards.

An epoch goes through all blocks of consecutive rows in random order. As many as fill some batches
are copied into the pool, one copy for each block, and rows are drawn from it, one gather for each
batch; then come the next blocks. A second thread does half of each step: torch's own team of
threads was hardly faster on an idle machine, and up to a hundred times slower on a busy one.

Shapes: N rows.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from actkit.store._memory import Memory
from actkit.store._shards import Bytes, Ids, Shards, as_rows, take

BLOCK = 256
"""Consecutive rows that are drawn at once."""

Span = tuple[int, int, int]
"""A shard's index, the first row and the end inside it."""


def shuffled(
    shards: Shards, names: Sequence[str], size: int, pool: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of an epoch, columns as they are stored.

    Every row comes once. All batches have `size` rows except the last one. The order depends on
    the store, the seed, `size` and `pool`, and not on the columns.

    Args:
        shards: The rows.
        names: The columns.
        size: Rows of a batch.
        pool: Most rows in the pool, at least `size`.
        seed: Decides on the order; another epoch takes another seed.
    """
    random = torch.Generator().manual_seed(seed)
    memory, columns = Memory(), [shards.columns[name] for name in names]
    pools = [np.empty((min(pool, len(shards)), c.row_bytes), np.uint8) for c in columns]
    with ThreadPoolExecutor(1, "actkit-batches") as helper:
        for window in _windows(shards, size, pool, random):
            shards.touch({shard for shard, _, _ in window})
            for column, room in zip(columns, pools, strict=True):
                num_rows = _fill(helper, room, shards, column.name, window)
            order_N = torch.randperm(num_rows, generator=random).numpy()
            for at in range(0, num_rows, size):
                index_N = order_N[at : at + size]
                yield {
                    column.name: as_rows(_drawn(helper, room, index_N, memory), column)
                    for column, room in zip(columns, pools, strict=True)
                }


def _windows(shards: Shards, size: int, pool: int, random: torch.Generator) -> Iterator[list[Span]]:
    """Yield what is in the pool together, in the order of the disk."""
    num_rows = len(shards)
    num_batches = -(-num_rows // size)
    # Windows of about one size, so that the last one mixes as well as the others.
    num_windows = -(-num_batches // (pool // size))
    shares = (num_batches * (k + 1) // num_windows for k in range(num_windows))
    ends = (min(num_rows, size * share) for share in shares)
    window: list[Span] = []
    end, done = next(ends, 0), 0
    for shard, start, stop in _blocks(shards, random):
        while start < stop:
            taken = min(stop - start, end - done)
            window.append((shard, start, start + taken))
            start, done = start + taken, done + taken
            if done == end:
                yield sorted(window)
                window, end = [], next(ends, 0)


def _blocks(shards: Shards, random: torch.Generator) -> Iterator[Span]:
    """Yield all blocks in random order."""
    lengths = np.diff(shards.bounds)
    counts = -(-lengths // BLOCK)
    owners = np.repeat(np.arange(len(lengths)), counts)
    firsts = BLOCK * (np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts))
    for i in torch.randperm(len(owners), generator=random).numpy():
        shard, start = int(owners[i]), int(firsts[i])
        yield shard, start, min(start + BLOCK, int(lengths[shard]))


def _fill(helper: Executor, room: Bytes, shards: Shards, name: str, window: Sequence[Span]) -> int:
    """Copy a window into the pool; return its number of rows."""
    ends = list(accumulate(stop - start for _, start, stop in window))

    def copy(low: int, high: int) -> None:
        for (shard, start, stop), end in zip(window[low:high], ends[low:high], strict=True):
            np.copyto(room[end - stop + start : end], shards.parts[shard].bytes(name)[start:stop])

    _in_halves(helper, copy, len(window))
    return ends[-1]


def _drawn(helper: Executor, room: Bytes, index_N: Ids, memory: Memory) -> Bytes:
    drawn = memory.take(len(index_N), room.shape[1])

    def copy(low: int, high: int) -> None:
        take(room, index_N[low:high], drawn[low:high])

    _in_halves(helper, copy, len(index_N))
    return drawn


def _in_halves(helper: Executor, job: Callable[[int, int], None], num: int) -> None:
    later = helper.submit(job, num // 2, num)
    job(0, num // 2)
    later.result()
