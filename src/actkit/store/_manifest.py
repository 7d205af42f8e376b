"""The manifest: a header line, then one line for each committed shard.

A line counts when its newline is there. What follows the last newline was torn by a crash; readers
pass over it and the next writer cuts it off.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from actkit.core.errors import DamagedError, StoreError

NAME = "manifest.jsonl"
FORMAT, VERSION = "actkit store", 1


@dataclass(frozen=True)
class Head:
    """What all shards of a store share.

    Args:
        sites: Shape of one row of each site.
        dtype: How activations are stored.
        shard_bytes: Size at which a shard is closed.
        header: Provenance: whatever the numbers depend on.
    """

    sites: dict[str, tuple[int, ...]]
    dtype: str
    shard_bytes: int
    header: dict[str, Any]

    def line(self) -> bytes:
        """Return the first line of the manifest.

        Raises:
            StoreError: The header holds what JSON does not know.
        """
        facts = {"format": FORMAT, "version": VERSION, **vars(self)}
        return _line(facts)

    @property
    def store(self) -> str:
        """The store's identity, 16 hexadecimal digits of its first line's SHA-256."""
        return hashlib.sha256(self.line()).hexdigest()[:16]

    def without(self, key: str) -> "Head":
        """Return the same head without one entry of its header."""
        return replace(self, header={k: v for k, v in self.header.items() if k != key})

    def check_same(self, other: "Head", path: Path) -> None:
        """Refuse to resume with settings that differ from those the store was begun with."""
        mine, theirs = (_flat(json.loads(h.line())) for h in (self, other))
        for key in [*mine, *(k for k in theirs if k not in mine)]:
            if mine.get(key) != theirs.get(key):
                raise changed(key, mine.get(key), theirs.get(key), path)


@dataclass(frozen=True)
class ShardEntry:
    """One committed shard.

    Args:
        shard: File name.
        rows: Number of rows.
        size: Of the file, in bytes.
        sha256: Of the whole file, in hexadecimal.
        cursor: Where its writer goes on after it.
        grid: (height, width) of images, else None.
    """

    shard: str
    rows: int
    size: int
    sha256: str
    cursor: Any = None
    grid: tuple[int, int] | None = None

    def line(self, head: Head, before: bytes) -> bytes:
        """Return the shard's line in the manifest, chained by a hash to the line before it."""
        facts = {**vars(self), "sites": list(head.sites), "dtype": head.dtype}
        return _line({**facts, "chain": hashlib.sha256(before + _line(facts)).hexdigest()[:16]})


@dataclass(frozen=True)
class Manifest:
    """A store's manifest as it lies on the disk.

    Attributes:
        folder: The store's folder.
        head: The first line.
        entries: The other lines.
        size: Bytes up to the last newline.
        last: The last line.
    """

    folder: Path
    head: Head
    entries: list[ShardEntry]
    size: int
    last: bytes

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of a folder.

        Raises:
            StoreError: There is none, or it was written by a newer version.
            DamagedError: A line is not what a writer of this store wrote.
        """
        path = folder / NAME
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"no store at {folder}: {path}: {error.strerror}") from error
        data = data[: data.rfind(b"\n") + 1]
        lines = [line + b"\n" for line in data.split(b"\n")[:-1]] or [b""]
        head, entries = _head(lines[0], path), []
        for index, (before, line) in enumerate(pairwise(lines)):
            entry = _entry(line)
            # A line is a function of its facts and of the line before it, so equal bytes mean
            # that nothing is foreign, lost or changed.
            if (
                entry is None
                or entry.shard != shard_name(index)
                or entry.line(head, before) != line
            ):
                raise DamagedError(
                    f"{path}, line {index + 2}: not the line that was written for "
                    f"{shard_name(index)}: {_brief(line)}"
                )
            entries.append(entry)
        return cls(folder, head, entries, len(data), lines[-1])

    def check_sizes(self) -> None:
        """Refuse to build on shards that are missing or cut, without reading them.

        Raises:
            DamagedError: A committed shard is missing or has another size.
        """
        for entry in self.entries:
            check_size(self.folder / entry.shard, entry)


def check_size(path: Path, entry: ShardEntry) -> None:
    """Raise DamagedError if a shard is missing or has another size than it was written with."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DamagedError(f"{path}: a committed shard must be there: {error.strerror}") from error
    if size != entry.size:
        raise DamagedError(f"{path}: the shard must have {entry.size} bytes, got {size}")


def begun(folder: Path) -> bool:
    """Say whether a folder holds a store with at least its first line."""
    path = folder / NAME
    return path.exists() and b"\n" in path.read_bytes()


def shard_name(index: int) -> str:
    """Return the file name of a store's shard."""
    return f"shard-{index:05}.safetensors"


def _head(line: bytes, path: Path) -> Head:
    try:
        facts = json.loads(line)
        known, version = facts["format"] == FORMAT, facts["version"]
        if known and version > VERSION:
            raise StoreError(
                f"{path}: this actkit reads stores up to version {VERSION}, got {version}; "
                "run: pip install -U actkit"
            )
        sites = {name: tuple(shape) for name, shape in facts["sites"].items()}
        head = Head(sites, facts["dtype"], facts["shard_bytes"], facts["header"])
    except (ValueError, KeyError, TypeError, AttributeError):
        head = None
    if head is None or head.line() != line:
        raise DamagedError(f"{path}, line 1: not the header that was written: {_brief(line)}")
    return head


def _entry(line: bytes) -> ShardEntry | None:
    """Return what a line says, None if it is not of the right form."""
    try:
        facts = json.loads(line)
        entry = ShardEntry(**{name: facts[name] for name in ShardEntry.__dataclass_fields__})
        return replace(entry, grid=entry.grid and (entry.grid[0], entry.grid[1]))
    except (ValueError, KeyError, TypeError):
        return None


def _line(facts: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(facts, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise StoreError(f"a manifest holds JSON, {error}") from error


def changed(what: str, was: Any, got: Any, path: Path) -> StoreError:
    """Return the error of resuming a store with something else than it was begun with."""
    return StoreError(
        f"a store is resumed with what it was begun with: {what} was {was!r} in {path}, got {got!r}"
    )


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Return nested mappings as one with dotted keys; the sites stay together."""
    if not isinstance(value, dict) or key == "sites":
        return {key: value}
    items: dict[str, Any] = {}
    for name, item in value.items():
        items |= _flat(item, f"{key}.{name}" if key else str(name))
    return items


def _brief(line: bytes, most: int = 60) -> str:
    return repr(line if len(line) <= most else line[:most] + b"...")
