"""What goes into a store comes out again, for every dtype, shape and index."""

import math
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from actkit.core.errors import SiteError, StoreError
from actkit.core.run.recording import Rows
from actkit.store import Store, StoreWriter

SITES = {"resid_post.10": (7,), "z.3": (3, 5), "norm:out": ()}
FACTS = ("sample", "position", "token")


def one_row() -> Rows:
    return Rows.of(torch.ones(1, 1, dtype=torch.bool)).flat()


def joined(pieces: list[Any], site: str) -> Tensor:
    return torch.cat([values[site] for values, _ in pieces])


@pytest.mark.parametrize("shard_bytes", [10**6, 2000, 1])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e4m3", "int8"])
def test_rows_come_back_in_order(
    dtype: str, shard_bytes: int, tmp_path: Path, pieces: Callable[..., list[Any]]
) -> None:
    given = pieces(20)
    with StoreWriter(tmp_path, SITES, dtype, {"seed": 3}, shard_bytes) as writer:
        for piece in given:
            writer.append(*piece)
    store = Store(tmp_path)
    assert (store.sites, store.dtype, store.header) == (SITES, dtype, {"seed": 3})
    assert len(store) == writer.num_rows == sum(len(rows) for _, rows in given)
    for name in FACTS:
        expected = torch.cat([getattr(rows, name) for _, rows in given])
        assert torch.equal(getattr(store.rows[:], name), expected)
    for site, shape in SITES.items():
        want, got = joined(given, site), store[site][:]
        assert store[site].shape == got.shape == (len(store), *shape)
        assert store[site].dtype == got.dtype
        plain = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
        if dtype in plain:
            assert torch.equal(got, want.to(plain[dtype]))
        elif dtype == "float8_e4m3":
            assert torch.equal(got, want.to(torch.float8_e4m3fn).float())
        else:  # half a step of a scale that makes the row's largest value 127
            step = want.reshape(len(want), -1).abs().amax(1) / 127
            error = (got - want).reshape(len(want), -1).abs().amax(1)
            assert (error <= 0.5001 * step).all()
            assert (error > 0.2 * step).any() or shape == ()


def test_raw_shows_what_is_stored(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, {"a": (2,)}, "int8") as writer:
        writer.append({"a": torch.tensor([[254.0, -1.0]])}, one_row())
        writer.append({"a": torch.zeros(1, 2)}, one_row())
    column = Store(tmp_path)["a"]
    assert column.raw[:].tolist() == [[127, 0], [0, 0]] and column.raw.dtype == torch.int8
    assert column[:].tolist() == [[254.0, 0.0], [0.0, 0.0]]


def test_other_readers_of_safetensors_can_open_a_shard(written: Path) -> None:
    store, start = Store(written), 0
    for path in sorted(written.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            assert set(file.keys()) == {*SITES, *FACTS}
            part = file.get_tensor("z.3")
        assert torch.equal(part, store["z.3"][start : start + len(part)])
        start += len(part)
    assert start == len(store) and path.name != "shard-00000.safetensors"


@pytest.mark.parametrize(
    "index",
    [
        0, -1, 57, slice(None), slice(3, 9), slice(60, 11), slice(-5, None), slice(100, 2, -7),
        slice(1, 110, 13), [5, 5, 111, 0, -1], [], torch.tensor([99, 3]),
    ],
    ids=repr,
)  # fmt: skip
def test_indexing_equals_that_of_a_tensor(
    index: Any, written: Path, pieces: Callable[..., list[Any]]
) -> None:
    given, store = pieces(20), Store(written)
    for site in SITES:
        whole = joined(given, site)
        flipped = isinstance(index, slice) and (index.step or 1) < 0
        ids = torch.arange(len(whole))[list(range(len(whole))[index])] if flipped else index
        assert torch.equal(store[site][index], whole[ids])
    rows = store.rows[index]
    assert torch.equal(rows.token, store["token"][index]) and rows.valid.all()


def test_mask_selects_rows(written: Path) -> None:
    store = Store(written)
    mask = store["position"][:] == 4
    assert torch.equal(store["z.3"][mask], store["z.3"][:][mask]) and mask.sum() > 3


def test_no_row_beyond_the_end(written: Path) -> None:
    store = Store(written)
    for index in (len(store), -len(store) - 1, [0, len(store)]):
        with pytest.raises(IndexError, match=f"below {len(store)}"):
            store["z.3"][index]
    with pytest.raises(IndexError, match=r"mask covers all \d+ rows, got shape \(3,\)"):
        store["z.3"][torch.ones(3, dtype=torch.bool)]


def test_slices_inside_a_shard_are_views_of_the_file(numbered: Callable[..., Path]) -> None:
    store = Store(numbered(20_000, 10_000))
    column = store["mlp_out.0"]
    first, later = column[100:9000], column[9990:10_000]
    storage = first.untyped_storage()
    assert (
        storage.nbytes() > 10_000 * 16 and later.untyped_storage().data_ptr() == storage.data_ptr()
    )
    assert column[10_000:].untyped_storage().data_ptr() != storage.data_ptr()
    across = column[9990:10_010]
    assert across.untyped_storage().nbytes() == 20 * 16
    assert across[:, 1].tolist() == list(range(9990, 10_010))


def test_writing_into_a_view_leaves_the_file_alone(written: Path) -> None:
    store = Store(written)
    store["z.3"][:5].zero_()
    store.verify()
    assert Store(written)["z.3"][:5].all()


def test_nan_and_infinity_are_kept(tmp_path: Path) -> None:
    odd = torch.tensor([[math.nan, math.inf, -math.inf, -0.0]])
    for dtype in ("float32", "float16", "bfloat16"):
        with StoreWriter(tmp_path / dtype, {"a": (4,)}, dtype) as writer:
            writer.append({"a": odd}, one_row())
        got = Store(tmp_path / dtype)["a"][0]
        assert got[0].isnan() and got[1:3].tolist() == [math.inf, -math.inf]
        assert math.copysign(1, got[3].item()) == -1
    with StoreWriter(tmp_path / "8", {"a": (1,)}, "float8_e4m3") as writer:
        writer.append({"a": odd[:, :1]}, one_row())
    assert Store(tmp_path / "8")["a"][0].isnan()


@pytest.mark.parametrize(
    ("dtype", "value", "rule"),
    [
        ("float16", 70_000.0, "float16 holds values up to 65504, got 70000 at a"),
        ("float8_e4m3", -449.0, "float8_e4m3 holds values up to 448, got 449 at a"),
        ("float8_e4m3", math.inf, "float8_e4m3 holds values up to 448, got inf at a"),
        ("bfloat16", 3.4e38, "bfloat16 holds values up to 3.38953e"),
        ("int8", math.nan, "int8 holds finite values only, got nan at a in row 1"),
        ("int8", -math.inf, "int8 holds finite values only, got inf at a in row 1"),
    ],
)
def test_what_a_dtype_cannot_hold_is_refused(
    dtype: str, value: float, rule: str, tmp_path: Path
) -> None:
    rows = Rows.of(torch.ones(1, 2, dtype=torch.bool)).flat()
    acts = torch.tensor([[1.0, 2.0], [math.nan if dtype != "int8" else 0.0, value]])
    writer = StoreWriter(tmp_path, {"a": (2,)}, dtype)
    with pytest.raises(StoreError, match=rule.replace("+", r"\+")):
        writer.append({"a": acts}, rows)
    writer.append({"a": torch.ones(2, 2)}, rows)  # a refused append leaves no trace
    writer.close()
    assert Store(tmp_path)["a"][:].tolist() == [[1, 1], [1, 1]]


def test_int8_keeps_rows_of_the_smallest_numbers(tmp_path: Path) -> None:
    tiny = torch.tensor([[2.7e-43, 0.0], [1.4e-45, 1.4e-45], [1e-38, -3e38]])
    rows = Rows.of(torch.ones(1, 3, dtype=torch.bool)).flat()
    with StoreWriter(tmp_path, {"a": (2,)}, "int8") as writer:
        writer.append({"a": tiny}, rows)
    got = Store(tmp_path)["a"][:]
    assert got[:2].eq(0).all() and got[2, 1].item() == pytest.approx(-3e38, rel=1e-6)


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"a": torch.ones(1, 3)}, r"rows at a must have shape \(2,\), got \(3,\)"),
        ({"a": torch.ones(1, 2, dtype=torch.long)}, "must be floating, got torch.int64 at a"),
        ({"a": torch.ones(4, 2)}, "share their rows, got 4 at a for 1 rows"),
        ({"b": torch.ones(1, 2)}, r"every append has the sites \['a'\], got \['b'\]"),
    ],
)
def test_appends_that_do_not_fit_are_refused(
    values: dict[str, Tensor], rule: str, tmp_path: Path
) -> None:
    with StoreWriter(tmp_path, {"a": (2,)}) as writer, pytest.raises(StoreError, match=rule):
        writer.append(values, one_row())


def test_padding_is_refused(tmp_path: Path) -> None:
    padded = Rows.of(torch.tensor([[True, False]]))
    with StoreWriter(tmp_path, {"a": (2,)}) as writer:
        with pytest.raises(StoreError, match=r"got shape \(1, 2\) with 1 of padding"):
            writer.append({"a": torch.ones(1, 2, 2)}, padded)
        with pytest.raises(StoreError, match=r"got shape \(2,\) with 1 of padding"):
            writer.append({"a": torch.ones(2, 2)}, padded[0])


@pytest.mark.parametrize(
    ("sites", "dtype", "rule"),
    [
        ({}, "float32", "at least one site"),
        ({"a": (2,)}, "float64", "dtype must be one of float32, .* got 'float64'"),
        ({"a": (2, 0)}, "float32", r"got shape \(2, 0\) at a"),
        ({"token": (2,)}, "float32", "keeps token for itself"),
        ({"a": (2,), "a.scale": (2,)}, "int8", "keeps a.scale for itself"),
    ],
)
def test_stores_that_cannot_be_are_refused(
    sites: dict[str, tuple[int, ...]], dtype: str, rule: str, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=rule):
        StoreWriter(tmp_path / "no", sites, dtype)
    assert not (tmp_path / "no").exists()


def test_an_unknown_site_lists_the_nearest(written: Path) -> None:
    with pytest.raises(SiteError, match=r"'resid_post.1' is not in .*; nearest: resid_post.10"):
        Store(written)["resid_post.1"]


def test_a_store_without_rows(tmp_path: Path) -> None:
    StoreWriter(tmp_path, SITES, "int8").close()
    store = Store(tmp_path)
    assert len(store) == 0 and store["z.3"][:].shape == (0, 3, 5) and len(store.rows[:]) == 0
    assert list(store.batches("z.3", 4)) == [] == list(store.batches("z.3", 4, shuffle=False))
    assert store["z.3"][[]].dtype == torch.float32
    store.verify()


def test_images_keep_their_grid(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "one", {"a": (2,)}, "float32") as writer:
        writer.append({"a": torch.ones(12, 2)}, Rows.image(2, 2, 3).flat())
    assert Store(tmp_path / "one").rows[3:5].grid == (2, 3)
    with StoreWriter(tmp_path / "two", {"a": (2,)}, "float32") as writer:
        writer.append({"a": torch.ones(12, 2)}, Rows.image(2, 2, 3).flat())
        writer.append({"a": torch.ones(4, 2)}, Rows.image(1, 2, 2).flat())
    assert Store(tmp_path / "two").rows[:].grid is None and len(Store(tmp_path / "two")) == 16


def test_a_store_opens_in_another_process(written: Path) -> None:
    store = pickle.loads(pickle.dumps(Store(written, check="never")))
    assert torch.equal(store["z.3"][:], Store(written)["z.3"][:])


def test_rows_go_to_the_disk_at_once(tmp_path: Path) -> None:
    rows = Rows.of(torch.ones(1, 100, dtype=torch.bool)).flat()
    open_shard = tmp_path / "shard-00000.safetensors.tmp"
    with StoreWriter(tmp_path, {"a": (64,)}, "float32") as writer:
        sizes = []
        for _ in range(3):
            writer.append({"a": torch.randn(100, 64)}, rows)
            sizes.append(open_shard.stat().st_size)
    assert [b - a for a, b in pairwise(sizes)] == [25_600, 25_600]
