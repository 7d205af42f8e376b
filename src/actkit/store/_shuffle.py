"""Batches in random order, read straight from the memory maps.

An epoch draws blocks of consecutive rows from all shards in random order. Enough blocks to fill
the pool are mixed row by row; what does not fill a batch is mixed with the next ones. The pool is
a choice of rows and no copy of them: they stay in the page cache, which the system keeps within
its memory. Each batch is gathered in the order of the disk, then permuted while it is in cache.

Shapes: N rows.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from actkit.core.errors import StoreError
from actkit.store._shards import Ids, Shards

Draw = tuple[Ids, Tensor]
"""Rows of a batch in the order of the disk, and the order to put them in."""

BLOCK = 512
"""Consecutive rows that are drawn at once."""

POOL = 65536
"""Rows that are mixed with each other, unless 16 batches are more."""


def shuffled(shards: Shards, size: int, pool: int | None, seed: int) -> Iterator[Draw]:
    """Yield each batch of an epoch: ascending row indices, and the order to put them in.

    Every row comes once. All batches have `size` rows except the last one.

    Args:
        shards: The rows.
        size: Rows of a batch.
        pool: Rows that are mixed with each other; None for 65,536, or 16 batches if that is more.
        seed: Decides on the order; another epoch takes another seed.
    """
    pool = max(POOL, 16 * size) if pool is None else pool
    if pool < size:
        raise StoreError(f"a pool holds at least one batch, got {pool} rows for batches of {size}")
    random = torch.Generator().manual_seed(seed)
    rest: Ids = np.empty(0, dtype=np.int64)
    for fresh in _windows(shards, pool, random):
        # Both runs ascend already, which the stable sort makes use of.
        ids_N = np.sort(np.concatenate([rest, fresh]), kind="stable")
        *batches, rest = _dealt(ids_N, size, random)
        for batch in batches:
            yield batch, torch.randperm(len(batch), generator=random)
    if len(rest):
        yield rest, torch.randperm(len(rest), generator=random)


def _windows(shards: Shards, pool: int, random: torch.Generator) -> Iterator[Ids]:
    """Yield the ascending rows of the random blocks that are in the pool together."""
    if not len(shards):
        return
    firsts = [
        np.arange(a, b, BLOCK) for a, b in zip(shards.bounds, shards.bounds[1:], strict=False)
    ]
    starts = np.concatenate(firsts)
    lengths = np.concatenate(
        [np.minimum(BLOCK, b - f) for f, b in zip(firsts, shards.bounds[1:], strict=True)]
    )
    order = torch.randperm(len(starts), generator=random).numpy()
    ends = np.cumsum(lengths[order])
    # Windows of about one size, so that the last one mixes as well as the others.
    window = (ends - 1) * -(-len(shards) // pool) // len(shards)
    for cut in np.split(order, np.flatnonzero(np.diff(window)) + 1):
        blocks = np.sort(cut)
        yield _spans(starts[blocks], lengths[blocks])


def _spans(starts: Ids, lengths: Ids) -> Ids:
    """Return the indices of several spans, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def _dealt(ids_N: Ids, size: int, random: torch.Generator) -> list[Ids]:
    """Deal rows out at random: full batches, then the rest; each ascends if the rows do."""
    hand = torch.randperm(len(ids_N), generator=random).numpy() // size
    num_batches = len(ids_N) // size
    # Few values let the stable sort be a counting one.
    narrow = hand.astype(np.min_scalar_type(num_batches))
    dealt = ids_N[np.argsort(narrow, kind="stable")]
    return [dealt[i * size : (i + 1) * size] for i in range(num_batches + 1)]
