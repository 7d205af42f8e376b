"""Rows that can be made again, in appends of uneven sizes.

Shapes: N rows.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from actkit.core.run.recording import Rows
from actkit.store import StoreWriter

Piece = tuple[dict[str, Tensor], Rows]
SITES = {"resid_post.10": (7,), "z.3": (3, 5), "norm:out": ()}


def rows_of(start: int, num_rows: int) -> Rows:
    """Rows whose facts differ from each other and fit no 32 bits."""
    index = torch.arange(start, start + num_rows)
    return Rows(torch.ones(num_rows, dtype=torch.bool), index // 11, index % 11, index + 2**40)


def piece_of(index: int, sites: dict[str, tuple[int, ...]] = SITES) -> Piece:
    """Append number `index`: 1 to 13 rows, off centre, of unequal scales."""
    sizes = [(i * 7) % 13 + 1 for i in range(index + 1)]
    gen = torch.Generator().manual_seed(index)
    scale = 10.0 ** (index % 3)
    values = {
        site: scale * (0.3 + torch.randn(sizes[-1], *shape, generator=gen))
        for site, shape in sites.items()
    }
    return values, rows_of(sum(sizes[:-1]), sizes[-1])


@pytest.fixture
def pieces() -> Callable[..., list[Piece]]:
    """Make the first appends."""

    def make(num: int, sites: dict[str, tuple[int, ...]] = SITES) -> list[Piece]:
        return [piece_of(i, sites) for i in range(num)]

    return make


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A store of several small shards, float32."""
    with StoreWriter(tmp_path / "store", SITES, "float32", {"seed": 3}, 2000) as writer:
        for index in range(20):
            writer.append(*piece_of(index), cursor=index)
    return tmp_path / "store"


@pytest.fixture
def numbered(tmp_path: Path) -> Callable[..., Path]:
    """Write a store whose rows hold their own number, at site "mlp_out.0"."""

    def make(num_rows: int, rows_per_shard: int = 10_000, width: int = 4) -> Path:
        folder = tmp_path / f"numbered-{num_rows}-{rows_per_shard}"
        shard_bytes = rows_per_shard * (width * 4 + 24)
        with StoreWriter(folder, {"mlp_out.0": (width,)}, "float32", {}, shard_bytes) as writer:
            for start in range(0, num_rows, 1000):
                rows = rows_of(start, min(1000, num_rows - start))
                number = torch.arange(start, start + len(rows))[:, None].expand(-1, width)
                writer.append({"mlp_out.0": number.float()}, rows)
        return folder

    return make
