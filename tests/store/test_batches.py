"""Shuffled and ordered batches: every row once, well mixed, the same for a seed.

Shapes: N rows.
"""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from actkit.core.errors import SiteError, StoreError
from actkit.store import Store, StoreWriter


def order(store: Store, size: int, **settings: object) -> Tensor:
    """The row numbers of an epoch, which are the values themselves."""
    batches = list(store.batches("mlp_out.0", size, **settings))  # type: ignore[arg-type]
    return torch.cat([batch["mlp_out.0"][:, 0] for batch in batches]).long()


@pytest.mark.parametrize(
    ("num_rows", "rows_per_shard", "size", "pool"),
    [(1, 9, 4, None), (513, 10_000, 100, 100), (20_011, 3000, 999, 4000), (7000, 1000, 64, 9000)],
)
def test_every_row_comes_once(
    num_rows: int, rows_per_shard: int, size: int, pool: int | None, numbered: Callable[..., Path]
) -> None:
    store = Store(numbered(num_rows, rows_per_shard))
    for seed in (0, 1):
        batches = list(store.batches(["mlp_out.0", "token"], size, seed=seed, pool=pool))
        sizes = [len(batch["token"]) for batch in batches]
        assert sizes == [size] * (num_rows // size) + [num_rows % size] * (num_rows % size > 0)
        number = torch.cat([batch["mlp_out.0"] for batch in batches])
        assert torch.equal(number[:, 0].sort().values, torch.arange(num_rows).float())
        assert torch.equal(number[:, 3], number[:, 0])
        token = torch.cat([batch["token"] for batch in batches])
        assert torch.equal(token - 2**40, number[:, 0].long())


def test_the_order_depends_on_the_seed_alone(numbered: Callable[..., Path]) -> None:
    path = numbered(5000, 1000)
    first = order(Store(path), 300, seed=5)
    torch.manual_seed(99)
    assert torch.equal(first, order(Store(path), 300, seed=5))
    assert (first == order(Store(path), 300, seed=6)).float().mean() < 0.01
    state = torch.get_rng_state()
    order(Store(path), 300)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("pool", [None, 8000])
def test_rows_are_well_mixed(pool: int | None, numbered: Callable[..., Path]) -> None:
    num_rows, size = 40_000, 1000
    got = order(Store(numbered(num_rows, 7000)), size, pool=pool).double()
    place = torch.arange(num_rows).double()
    rank = torch.corrcoef(torch.stack([place, got]))[0, 1].abs()
    assert rank < 0.2
    # Of two uniform rows the mean distance is a third of the rows; neighbours hardly ever meet.
    distance = got.diff().abs()
    assert distance.mean() == pytest.approx(num_rows / 3, rel=0.1)
    assert (distance == 1).float().mean() < 0.001
    # Inside a batch nothing is sorted, neither by shard nor by row.
    batch = got[:size]
    inside = torch.corrcoef(torch.stack([torch.arange(size).double(), batch]))[0, 1].abs()
    assert inside < 0.1
    blocks = torch.unique(batch // 256)
    assert len(blocks) > (40 if pool is None else 25)


def test_neighbours_part_within_the_pool(numbered: Callable[..., Path]) -> None:
    size, pool, num_rows = 500, 8000, 32_000
    got = order(Store(numbered(num_rows, 5000)), size, pool=pool)
    batch_of = torch.empty(num_rows, dtype=torch.long)
    batch_of[got] = torch.arange(num_rows) // size
    together = (batch_of[1:] == batch_of[:-1]).float().mean()
    assert together == pytest.approx(size / pool, rel=0.25)


def test_batches_in_order_are_the_rows(numbered: Callable[..., Path]) -> None:
    store = Store(numbered(5300, 1000))
    assert torch.equal(order(store, 700, shuffle=False), torch.arange(5300))
    first = next(store.batches("mlp_out.0", 700, shuffle=False))["mlp_out.0"]
    assert first.untyped_storage().nbytes() > 1000 * 16, "a batch inside one shard is no copy"


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_last_batch_can_be_left_out(shuffle: bool, numbered: Callable[..., Path]) -> None:
    store = Store(numbered(2100, 1000))
    got = order(store, 500, shuffle=shuffle, drop_last=True)
    assert len(got) == len(torch.unique(got)) == 2000
    assert len(order(store, 700, shuffle=shuffle, drop_last=True)) == 2100


def test_batches_stay_as_they_are(numbered: Callable[..., Path]) -> None:
    store = Store(numbered(9000, 2000))
    kept = list(store.batches("mlp_out.0", 500, seed=1))
    again = store.batches("mlp_out.0", 500, seed=1)
    for one, other in zip(kept, again, strict=True):
        assert torch.equal(one["mlp_out.0"], other["mlp_out.0"])
        other["mlp_out.0"].zero_()
    assert torch.cat([b["mlp_out.0"] for b in kept])[:, 0].sum() == sum(range(9000))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3", "int8"])
def test_batches_hold_what_indexing_gives(
    dtype: str, tmp_path: Path, pieces: Callable[..., list[tuple[dict[str, Tensor], object]]]
) -> None:
    sites = {"resid_post.10": (7,), "z.3": (3, 5), "norm:out": ()}
    with StoreWriter(tmp_path, sites, dtype, shard_bytes=1500) as writer:
        for values, rows in pieces(30):
            writer.append(values, rows)  # type: ignore[arg-type]
    store, seen = Store(tmp_path), 0
    for batch in store.batches([*sites, "token"], 17, seed=2):
        rows = batch["token"] - 2**40
        for site in sites:
            assert batch[site].dtype == store[site].dtype
            assert torch.equal(batch[site], store[site][rows])
        seen += len(rows)
    assert seen == len(store)


def test_an_epoch_may_be_left_early(numbered: Callable[..., Path]) -> None:
    store, before = Store(numbered(9000, 2000)), threading.active_count()
    epoch = store.batches("mlp_out.0", 100)
    next(epoch)
    epoch.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_wrong_settings_are_refused(numbered: Callable[..., Path]) -> None:
    store = Store(numbered(100))
    with pytest.raises(StoreError, match=r"1 row to as many as the pool \(12288\), got 0"):
        store.batches("mlp_out.0", 0)
    with pytest.raises(StoreError, match=r"as many as the pool \(5\), got 9"):
        store.batches("mlp_out.0", 9, pool=5)
    with pytest.raises(SiteError, match=r"nearest: mlp_out\.0"):
        store.batches("mlp_out.1", 9)
    with pytest.raises(StoreError, match="at least one site, got none"):
        store.batches([], 9)
