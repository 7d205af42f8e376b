"""Kills writers and looks at what they leave; run by test_crash.py in a process of its own.

Writers are forked, so that a kill costs milliseconds. Prints one line of JSON.

Shapes: N rows.
"""

import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from actkit.core.errors import StoreError
from actkit.core.run.recording import Rows
from actkit.store import Store, StoreWriter, _disk, _open_shard
from actkit.store import writer as writer_module
from actkit.store._manifest import begun

SITES = {"resid_post.3": (5,), "z.1": (2, 3)}
NUM_PIECES = 400
SIZES = [(i * 7) % 13 + 1 for i in range(NUM_PIECES)]
SHARD_BYTES = 2000


def piece(index: int) -> tuple[dict[str, torch.Tensor], Rows]:
    start, num_rows = sum(SIZES[:index]), SIZES[index]
    row = torch.arange(start, start + num_rows)
    values = {
        "resid_post.3": (row[:, None] + torch.arange(5) / 8).float(),
        "z.1": -(row[:, None, None] + torch.arange(6).view(2, 3) / 8).float(),
    }
    return values, Rows(torch.ones(num_rows, dtype=torch.bool), row // 9, row % 9, row)


def write(folder: Path, tell: Callable[[int], object] = lambda _: None) -> None:
    with StoreWriter(folder, SITES, "float32", {"seed": 1}, SHARD_BYTES) as writer:
        for index in range(writer.cursor or 0, NUM_PIECES):
            writer.append(*piece(index), cursor=index + 1)
            tell(writer.num_rows)


def tell(handle: int, num_rows: int) -> None:
    os.write(handle, b"%8d" % num_rows)


def check(folder: Path) -> int:
    """Verify a store and compare its rows with those that were given; return how many."""
    store = Store(folder)
    store.verify()
    row = torch.arange(len(store))
    assert torch.equal(store["resid_post.3"][:][:, 0], row.float())
    assert torch.equal(store["z.1"][:].flatten(1)[:, 5], -(row + 5 / 8))
    assert torch.equal(store["token"][:], row)
    return len(store)


def forked(job: Callable[[], Any]) -> int:
    """Run a job in a child; return its process id."""
    child = os.fork()
    if child:
        return child
    try:
        job()
    except BaseException as error:  # noqa: BLE001 - a child must not go on as its parent
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def kill_at_random(folder: Path, kills: int) -> dict[str, Any]:
    """Kill writers at random moments until `kills` are done, then let one finish."""
    dice, rows, told_most, moments = random.Random(0), 0, 0, []
    for _ in range(kills):
        read, told_to = os.pipe()
        child = forked(partial(write, folder, partial(tell, told_to)))
        os.close(told_to)
        time.sleep(dice.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        told = b""
        while data := os.read(read, 65536):
            told += data
        os.close(read)
        told_most = max(told_most, *(int(told[i : i + 8]) for i in range(0, len(told), 8)), 0)
        if begun(folder):
            found = check(folder)
            assert found >= told_most, f"{told_most} rows were committed, {found} are left"
            assert found >= rows
            rows = found
        moments.append(rows)
    write(folder)
    return {"rows_after_each_kill": moments}


def die_at_each_step(folder: Path, most: int) -> dict[str, Any]:
    """Let a writer die before each of its first system calls in turn, the writes torn in two."""
    steps = 0
    for step in range(most):
        child = forked(partial(die, folder, step))
        _, status = os.waitpid(child, 0)
        if begun(folder):
            check(folder)
        steps += os.WEXITSTATUS(status) == 9
    write(folder)
    return {"steps": steps}


def die(folder: Path, steps: int) -> None:
    """Write until a step; die there, with half of the bytes written if it is a write."""
    left = [steps]

    def counted(call: Callable[..., Any], torn: bool = False) -> Callable[..., Any]:
        def step(*args: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                if torn:
                    view = memoryview(args[1]).cast("B")
                    args[0].write(view[: len(view) // 2])
                os._exit(9)
            return call(*args)

        return step

    torn = counted(_disk.write_all, torn=True)
    with (
        patch.object(_open_shard, "write_all", torn),
        patch.object(writer_module, "write_all", torn),
        patch.object(os, "fsync", counted(os.fsync)),
        patch.object(Path, "rename", counted(Path.rename)),
        patch.object(Path, "unlink", counted(Path.unlink)),
    ):
        write(folder)


def fill_up(folder: Path) -> dict[str, Any]:
    """Write where files may not grow beyond a size, as on a full disk."""

    def job() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        try:
            with StoreWriter(folder, SITES, "float32", {"seed": 1}, 40_000) as writer:
                for index in range(NUM_PIECES):
                    writer.append(*piece(index), cursor=index + 1)
        except StoreError as error:
            (folder / "said").write_text(str(error))

    _, status = os.waitpid(forked(job), 0)
    said = (folder / "said").read_text()
    (folder / "said").unlink()
    left = sorted(p.name for p in folder.iterdir())
    return {"status": status, "said": said, "left": left, "rows": check(folder)}


def same_files(one: Path, other: Path) -> bool:
    names = sorted(p.name for p in one.iterdir())
    return names == sorted(p.name for p in other.iterdir()) and all(
        (one / n).read_bytes() == (other / n).read_bytes() for n in names
    )


def main(folder: Path) -> dict[str, Any]:
    write(folder / "whole")
    found = {"filled": fill_up(folder / "filled")}
    for name, job in {"killed": kill_at_random, "stepped": die_at_each_step}.items():
        found[name] = job(folder / name, 40)
        found[name]["rows"] = check(folder / name)
        found[name]["same"] = same_files(folder / name, folder / "whole")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)  # a forked child has no pool of threads to wait for
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))))
