"""The manifest: a header line, then one line for each committed shard.

A line counts when its newline is there. What follows the last newline was torn by a crash; readers
pass over it and the next writer cuts it off.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
class Entry:
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

    def line(self, head: Head) -> bytes:
        """Return the shard's line in the manifest."""
        shared = {"sites": list(head.sites), "dtype": head.dtype, "store": head.store}
        return _line({**vars(self), **shared})


@dataclass(frozen=True)
class Manifest:
    """A store's manifest as it lies on the disk.

    Attributes:
        folder: The store's folder.
        head: The first line.
        entries: The other lines.
        size: Bytes up to the last newline.
    """

    folder: Path
    head: Head
    entries: list[Entry] = field(default_factory=list)
    size: int = 0

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
        first, *others = data.split(b"\n")[:-1] or [b""]
        head = _head(first, path)
        entries = [_entry(line, i, head, path) for i, line in enumerate(others)]
        return cls(folder, head, entries, len(data))

    def check_sizes(self) -> None:
        """Refuse to build on shards that are missing or cut, without reading them.

        Raises:
            DamagedError: A committed shard is missing or has another size.
        """
        for entry in self.entries:
            check_size(self.folder / entry.shard, entry)


def check_size(path: Path, entry: Entry) -> None:
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
    facts = _facts(line, path, 1)
    if facts.pop("format", None) != FORMAT:
        raise DamagedError(f"{path}, line 1: a manifest begins with its header, got {_brief(line)}")
    version = facts.pop("version", None)
    if isinstance(version, int) and version > VERSION:
        raise StoreError(
            f"{path}: this actkit reads stores up to version {VERSION}, got {version}; "
            "run: pip install -U actkit"
        )
    try:
        sites = {name: tuple(shape) for name, shape in facts["sites"].items()}
        head = Head(sites, facts["dtype"], facts["shard_bytes"], facts["header"])
    except (KeyError, TypeError, AttributeError):
        head = None
    if head is None or head.line() != line + b"\n":
        raise DamagedError(f"{path}, line 1: the header is not what was written: {_brief(line)}")
    return head


def _entry(line: bytes, index: int, head: Head, path: Path) -> Entry:
    facts = _facts(line, path, index + 2)
    own = {k: facts[k] for k in Entry.__dataclass_fields__ if k in facts}
    try:
        entry = Entry(**own)
    except TypeError:
        entry = None
    # A writer's line is a function of its facts, so equal bytes mean that nothing is foreign.
    if entry is None or entry.shard != shard_name(index) or entry.line(head) != line + b"\n":
        raise DamagedError(
            f"{path}, line {index + 2}: not the line of {shard_name(index)} of this store: "
            f"{_brief(line)}"
        )
    return entry if entry.grid is None else replace(entry, grid=(entry.grid[0], entry.grid[1]))


def _facts(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        facts = json.loads(line)
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise DamagedError(f"{path}, line {number}: a line must be JSON, got {_brief(line)}")
    return facts


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
