"""A damaged store says which file is damaged, and gives no wrong row."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actkit.core.errors import DamagedError, StoreError
from actkit.store import Store, StoreWriter

SITES = {"resid_post.10": (7,), "z.3": (3, 5), "norm:out": ()}
SECOND = "shard-00001.safetensors"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def assert_second_is_damaged(folder: Path, rule: str) -> None:
    """Reading the second shard in any way raises; the first one is still read."""
    store = Store(folder)
    rows = json.loads((folder / "manifest.jsonl").read_text().splitlines()[1])["rows"]
    assert len(store["z.3"][:rows]) == rows
    reads: list[Callable[[], Any]] = [
        lambda: store["z.3"][rows],
        lambda: store["z.3"][:],
        lambda: store["norm:out"][[0, rows]],
        lambda: store.rows[rows - 1 : rows + 1],
        lambda: list(store.batches("resid_post.10", 8)),
        lambda: list(store.batches("resid_post.10", 8, shuffle=False)),
        store.verify,
    ]
    for read in reads:
        with pytest.raises(DamagedError, match=rf"{SECOND}: {rule}"):
            read()


@pytest.mark.parametrize("at", [9, 5000, -1], ids=["head", "middle", "last byte"])
def test_a_flipped_byte(at: int, written: Path) -> None:
    flip(written / SECOND, at)
    assert_second_is_damaged(written, "")


def test_a_truncated_shard(written: Path) -> None:
    size = (written / SECOND).stat().st_size
    with (written / SECOND).open("r+b") as file:
        file.truncate(size - 3)
    assert_second_is_damaged(written, f"the shard must have {size} bytes, got {size - 3}")


def test_a_missing_shard(written: Path) -> None:
    (written / SECOND).unlink()
    assert_second_is_damaged(written, "a committed shard must be there: No such file")


def test_a_shard_of_another_store(
    written: Path, tmp_path: Path, pieces: Callable[..., list[Any]]
) -> None:
    with StoreWriter(tmp_path / "other", SITES, "float32", {"seed": 9}, 2000) as writer:
        for piece in pieces(20):
            writer.append(*piece)
    (written / SECOND).write_bytes((tmp_path / "other" / SECOND).read_bytes())
    assert_second_is_damaged(written, "")
    with pytest.raises(DamagedError, match=f"{SECOND}: the head is not of {SECOND}"):
        Store(written, check="never")["z.3"][:]


def test_two_shards_swapped(written: Path) -> None:
    first, second = written / "shard-00002.safetensors", written / "shard-00003.safetensors"
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    with pytest.raises(DamagedError, match=r"shard-00002.*; .*shard-00003"):
        Store(written).verify()


def test_verify_names_all_damaged_files_and_no_other(written: Path) -> None:
    flip(written / "shard-00000.safetensors", -5)
    (written / "shard-00003.safetensors").unlink()
    with pytest.raises(DamagedError) as caught:
        Store(written).verify()
    named = {i for i in range(5) if f"shard-{i:05}" in str(caught.value)}
    assert named == {0, 3}


def test_without_the_check_only_verify_finds_a_flipped_byte(written: Path) -> None:
    flip(written / SECOND, -1)
    store = Store(written, check="never")
    store["z.3"][:]
    with pytest.raises(DamagedError, match=SECOND):
        store.verify()
    with pytest.raises(StoreError, match="one of first_read, never, got 'often'"):
        Store(written, check="often")


@pytest.mark.parametrize(
    "edit",
    [
        lambda lines: [*lines, b"written by something else"],
        lambda lines: [*lines, b"{}"],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        lambda lines: [*lines[:2], lines[2].replace(b'"rows":', b'"rows":1'), *lines[3:]],
        lambda lines: [*lines[:2], lines[2].replace(b'"cursor":', b'"cursor":1'), *lines[3:]],
        lambda lines: [*lines[:2], b"", *lines[2:]],
        lambda lines: lines[1:],
        lambda lines: [lines[0].replace(b"float32", b"float16"), *lines[1:]],
        lambda lines: [lines[0].replace(b'"sites"', b'"places"'), *lines[1:]],
        lambda lines: [],
    ],
    ids=[
        "text", "empty object", "line twice", "line lost", "lines swapped", "row count",
        "cursor", "empty line", "no header", "other dtype", "other key", "empty file",
    ],
)  # fmt: skip
def test_a_foreign_manifest_line(edit: Callable[[list[bytes]], list[bytes]], written: Path) -> None:
    manifest = written / "manifest.jsonl"
    changed = edit(manifest.read_bytes().splitlines())
    manifest.write_bytes(b"".join(line + b"\n" for line in changed))
    with pytest.raises(DamagedError, match=r"manifest\.jsonl"):
        len(Store(written)["z.3"][:])
    with pytest.raises(DamagedError, match=r"manifest\.jsonl"):
        StoreWriter(written, SITES, "float32", {"seed": 3}, 2000)
    assert len(list(written.glob("shard-*"))) > 4, "nothing is removed beside a damaged manifest"


def test_the_manifest_of_another_store(
    written: Path, tmp_path: Path, pieces: Callable[..., list[Any]]
) -> None:
    with StoreWriter(tmp_path / "other", SITES, "float32", {"seed": 9}, 2000) as writer:
        for piece in pieces(20):
            writer.append(*piece)
    other = (tmp_path / "other" / "manifest.jsonl").read_bytes()
    manifest = written / "manifest.jsonl"
    mine = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join([*mine[:3], *other.splitlines(keepends=True)[3:]]))
    with pytest.raises(DamagedError, match=r"manifest.jsonl, line 4: .* for shard-00002"):
        Store(written)
    manifest.write_bytes(other)
    with pytest.raises(DamagedError, match=r"shard-00000.* the head is not of"):
        Store(written)["z.3"][0]


def test_a_torn_last_line_was_never_committed(written: Path) -> None:
    manifest, rows = written / "manifest.jsonl", len(Store(written))
    data = manifest.read_bytes()
    last = json.loads(data.splitlines()[-1])["rows"]
    manifest.write_bytes(data[:-1])
    store = Store(written)
    store.verify()
    assert len(store) == rows - last == len(store["z.3"][:])


def test_a_store_is_not_resumed_on_damaged_ground(written: Path) -> None:
    (written / SECOND).unlink()
    with pytest.raises(DamagedError, match=SECOND):
        StoreWriter(written, SITES, "float32", {"seed": 3}, 2000)


def test_no_store_and_a_newer_one(tmp_path: Path, written: Path) -> None:
    with pytest.raises(StoreError, match=r"no store at .*nothing"):
        Store(tmp_path / "nothing")
    manifest = written / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes().replace(b'"version":1', b'"version":2', 1))
    with pytest.raises(StoreError, match=r"up to version 1, got 2; run: pip install -U actkit"):
        Store(written)
