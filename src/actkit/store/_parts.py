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
    names = {p.name for p in folder.glob("part-*-of-*") if re.fullmatch(r"part-\d+-of-\d+", p.name)}
    if not names:
        return []
    worlds = sorted({int(name.rpartition("-")[2]) for name in names})
    if len(worlds) > 1 or (folder / NAME).exists():
        kinds = [*(f"{w} parts" for w in worlds), *[NAME] * (folder / NAME).exists()]
        raise StoreError(f"{folder}: a store is written by one run, got {' and '.join(kinds)}")
    parts = [part_name(rank, worlds[0]) for rank in range(worlds[0])]
    if missing := [name for name in parts if name not in names]:
        raise StoreError(f"{folder}: all {worlds[0]} parts must be there, {missing[0]} is missing")
    return [folder / name for name in parts]


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
