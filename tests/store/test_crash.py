"""A writer that dies or fails at any point loses the open shard at most."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from actkit.core.errors import StoreError
from actkit.core.run.recording import Rows
from actkit.store import Store, StoreWriter

Piece = tuple[dict[str, Tensor], Rows]
SITES = {"resid_post.10": (7,), "z.3": (3, 5), "norm:out": ()}
NUM_ROWS = sum((i * 7) % 13 + 1 for i in range(400))


def write(folder: Path, pieces: list[Piece]) -> None:
    with StoreWriter(folder, SITES, "float32", shard_bytes=1000) as writer:
        for index in range(writer.cursor or 0, len(pieces)):
            writer.append(*pieces[index], cursor=index + 1)


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What crash.py found; one process does it all, since importing torch takes longest."""
    script, folder = Path(__file__).with_name("crash.py"), tmp_path_factory.mktemp("crash")
    command = [sys.executable, str(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_kill_at_random_moments(crashed: dict[str, Any]) -> None:
    found = crashed["killed"]
    assert found["same"] and found["rows"] == NUM_ROWS
    between = {n for n in found["rows_after_each_kill"] if 0 < n < NUM_ROWS}
    assert len(between) > 3, "no kill met a store that was being written"


def test_death_before_each_step_of_a_commit(crashed: dict[str, Any]) -> None:
    found = crashed["stepped"]
    assert found["same"] and found["rows"] == NUM_ROWS and found["steps"] == 40


def test_a_file_that_may_not_grow(crashed: dict[str, Any]) -> None:
    found = crashed["filled"]
    assert found["status"] == 0 and found["rows"] == 0 and found["left"] == ["manifest.jsonl"]
    assert found["said"].startswith("cannot write ")
    assert "/filled/shard-00000.safetensors.tmp: File too large" in found["said"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_while_rows_are_written(
    tmp_path: Path, pieces: Callable[..., list[Piece]]
) -> None:
    one, two = pieces(2)
    writer = StoreWriter(tmp_path, SITES, "float32", shard_bytes=1)
    writer.append(*one)
    writer.commit()
    (tmp_path / "shard-00001.safetensors.tmp").symlink_to("/dev/full")
    rule = r"cannot write .*shard-00001.safetensors.tmp: No space left"
    with pytest.raises(StoreError, match=rule):
        writer.append(*two)
    with pytest.raises(StoreError, match="was closed"):
        writer.append(*two)
    assert len(Store(tmp_path)) == len(one[1])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "manifest.jsonl",
        "shard-00000.safetensors",
    ]


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_full_disk_while_a_shard_is_committed(
    failing: int,
    tmp_path: Path,
    pieces: Callable[..., list[Piece]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = pieces(12)
    write(tmp_path / "whole", given)
    calls, sync = 0, os.fsync

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        # The new manifest takes 3, a shard takes 3: the file, its folder, the manifest.
        if calls == 6 + failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    name = "manifest.jsonl" if failing == 3 else "shard-00001.safetensors.tmp"
    with pytest.raises(StoreError, match=f"cannot write .*{name}: No space left"):
        write(tmp_path / "store", given)
    names = sorted(p.name for p in (tmp_path / "store").iterdir())
    assert names == ["manifest.jsonl", "shard-00000.safetensors"]
    Store(tmp_path / "store").verify()
    write(tmp_path / "store", given)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "store" / path.name).read_bytes()


def test_an_error_in_the_block_discards_the_open_shard(
    tmp_path: Path, pieces: Callable[..., list[Piece]]
) -> None:
    given = pieces(9)

    def interrupted() -> None:
        with StoreWriter(tmp_path, SITES, "float32") as writer:
            writer.append(*given[0], cursor="first")
            writer.commit()
            writer.append(*given[1])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "manifest.jsonl",
        "shard-00000.safetensors",
    ]
    with StoreWriter(tmp_path, SITES, "float32") as writer:
        assert (writer.num_rows, writer.cursor) == (len(given[0][1]), "first")


def test_leftovers_are_removed_and_a_torn_line_is_cut_off(written: Path) -> None:
    before = {p.name: p.read_bytes() for p in written.iterdir()}
    manifest = written / "manifest.jsonl"
    manifest.write_bytes(before["manifest.jsonl"] + before["manifest.jsonl"][:57])
    (written / f"shard-{len(before) - 1:05}.safetensors").write_bytes(b"renamed, not committed")
    (written / f"shard-{len(before):05}.safetensors.tmp").write_bytes(b"open")
    Store(written).verify()
    StoreWriter(written, SITES, "float32", {"seed": 3}, 2000).close()
    assert before == {p.name: p.read_bytes() for p in written.iterdir()}


def test_a_store_has_one_writer(written: Path) -> None:
    with (
        StoreWriter(written, SITES, "float32", {"seed": 3}, 2000),
        pytest.raises(StoreError, match=r"one writer at a time, .* is being written"),
    ):
        StoreWriter(written, SITES, "float32", {"seed": 3}, 2000)


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"dtype": "bfloat16"}, "dtype was 'float32' in .*manifest.jsonl, got 'bfloat16'"),
        ({"header": {"seed": 4}}, "header.seed was 3 in .*manifest.jsonl, got 4"),
        ({"header": {"seed": 3, "model": "x"}}, "header.model was None .*, got 'x'"),
        ({"shard_bytes": 2001}, "shard_bytes was 2000 in .*, got 2001"),
        (
            {"sites": {"z.3": (3, 5)}},
            r"sites was {'resid_post.10': \[7\], .* got {'z.3': \[3, 5\]}",
        ),
    ],
)
def test_other_settings_are_no_resumption(
    changed: dict[str, Any], rule: str, written: Path
) -> None:
    before = (written / "manifest.jsonl").read_bytes()
    settings: dict[str, Any] = {
        "sites": SITES,
        "dtype": "float32",
        "header": {"seed": 3},
        "shard_bytes": 2000,
    }
    with pytest.raises(StoreError, match=rule):
        StoreWriter(written, **{**settings, **changed})
    assert (written / "manifest.jsonl").read_bytes() == before
    StoreWriter(written, **settings).close()
