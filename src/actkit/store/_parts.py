"""A store written by several processes: one folder with a part for each, read as one.

A part is a store of its own, so each process writes alone; no tensor travels between them.
"""

import re
from pathlib import Path

from actkit.core.errors import DamagedError, StoreError
from actkit.store._manifest import NAME, Manifest

PART = "part"
"""Key of a part's own name in its header; parts are alike in everything else."""


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


def read_manifests(folder: Path) -> list[Manifest]:
    """Return the manifest of a store, or those of its parts by rank.

    Raises:
        StoreError: There is no store, or a part is missing.
        DamagedError: A manifest is not what was written, or the parts do not belong together.
    """
    manifests = [Manifest.read(part) for part in find_parts(folder)] or [Manifest.read(folder)]
    first = manifests[0]
    for manifest in manifests[1:]:
        try:
            first.head.without(PART).check_same(manifest.head.without(PART), manifest.folder)
        except StoreError as error:
            raise DamagedError(
                f"{manifest.folder / NAME}: a part of another store: {error}"
            ) from error
    return manifests
