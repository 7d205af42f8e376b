"""A store written by several processes: one folder with a part for each, read as one.

A part is a store of its own, so each process writes alone; no tensor travels between them. When
its data have come to their end, a file beside its manifest says so: the hash of the last line, so
that the mark counts until another shard is committed.
"""

import hashlib
import re
from pathlib import Path

from actkit.core.errors import DamagedError, StoreError
from actkit.store._disk import writing
from actkit.store._manifest import NAME, Manifest

PART = "part"
"""Key of a part's own name in its header; parts are alike in everything else."""
MARK = "finished"
"""Name of the file that says that a part is."""


def part_name(rank: int, world: int) -> str:
    """Return the folder name of one process's part."""
    return f"part-{rank:05}-of-{world:05}"


def find_parts(folder: Path) -> list[Path]:
    """Return the folders of a store's parts by rank; none if it was written by one process.

    Raises:
        StoreError: A part is missing, or the parts are of different runs.
    """
    worlds = _worlds(folder)
    if not worlds:
        return []
    check_alone(folder, min(worlds))
    parts = [folder / part_name(rank, min(worlds)) for rank in range(min(worlds))]
    if missing := [part.name for part in parts if not part.exists()]:
        raise StoreError(f"{folder}: all {len(parts)} parts must be there, {missing[0]} is missing")
    return parts


def check_alone(folder: Path, world: int | None) -> None:
    """Refuse a folder that holds a store of another number of processes.

    Args:
        folder: Of the whole store.
        world: How many processes write or wrote it; None for one without parts.
    """
    found = {f"{n} parts" for n in _worlds(folder) if n != world}
    if world is not None and (folder / NAME).exists():
        found.add("one without parts")
    if found:
        asked = "without parts" if world is None else f"of {world} parts"
        raise StoreError(f"{folder}: a store {asked} must be alone, got {', '.join(sorted(found))}")


def _worlds(folder: Path) -> set[int]:
    found = (re.fullmatch(r"part-\d+-of-(\d+)", p.name) for p in folder.glob("part-*-of-*"))
    return {int(match[1]) for match in found if match}


def finish(part: Path) -> None:
    """Mark a part as finished."""
    with writing(part / MARK):
        (part / MARK).write_text(_mark(Manifest.read(part)))


def _mark(manifest: Manifest) -> str:
    return hashlib.sha256(manifest.last).hexdigest()


def _finished(manifest: Manifest) -> bool:
    path = manifest.folder / MARK
    return path.exists() and path.read_text() == _mark(manifest)


def read_manifests(folder: Path, unfinished: bool = False) -> list[Manifest]:
    """Return the manifest of a store, or those of its parts by rank.

    Args:
        folder: Of the whole store.
        unfinished: Whether parts may be unfinished.

    Raises:
        StoreError: There is no store, or a part is missing or unfinished.
        DamagedError: A manifest is not what was written, or the parts do not belong together.
    """
    parts = [Manifest.read(part) for part in find_parts(folder)]
    if not parts:
        return [Manifest.read(folder)]
    first = parts[0]
    for manifest in parts[1:]:
        try:
            first.head.without(PART).check_same(manifest.head.without(PART), manifest.folder)
        except StoreError as error:
            raise DamagedError(
                f"{manifest.folder / NAME}: a part of another store: {error}"
            ) from error
    if open_parts := [part.folder.name for part in parts if not (unfinished or _finished(part))]:
        raise StoreError(
            f"{folder}: all {len(parts)} parts must be finished, {open_parts[0]} is not: harvest "
            "again to go on, or read what is there with unfinished=True"
        )
    return parts
