"""Open a user's own data as a stream: files, folders, lists, Hugging Face datasets."""

from collections.abc import Iterable, Iterator, Mapping, Set, Sized
from functools import partial
from glob import glob
from os import PathLike
from pathlib import Path
from typing import Any

from actkit.core.errors import DataError
from actkit.data._readers import (
    IMAGES,
    UNITS,
    How,
    ending,
    field_of,
    missing_field,
    num_rows,
    read,
    sifted,
    string,
)
from actkit.data._samples import CountedSamples, Samples

HUB = "hf:"


def load(
    source: Any,
    field: str = "text",
    limit: int | None = None,
    *,
    unit: str = "paragraph",
    size: int | None = None,
    on_bad: str = "raise",
) -> Samples:
    r"""Open data as `Samples`: read again at every iteration, one sample in memory at a time.

    Nothing is changed, and nothing left out unless you say so: a row that cannot be read is an
    error that says where. Blank lines are no rows.

    Args:
        source: One of
            a file: `.txt`, `.jsonl`, `.json` (a list of rows), `.csv` and `.tsv` (UTF-8; also
            `.gz`, `.xz`, `.bz2`, `.zst`), `.parquet`, or an image `.jpg`, `.png`;
            a pattern of such files, `"data/**/*.jsonl.gz"`, read in the order of their paths;
            a folder of such files, all texts or all images, read recursively in the order of
            their paths, hidden files left out;
            a list of `Path` objects, read in its order;
            a list of strings or of mappings, or another object that gives them at every
            iteration, such as a Hugging Face dataset;
            `"hf:name"`: the split `train` of a data set of the Hugging Face Hub, streamed.
        field: The field with the text, of rows that have fields; or with a chat's messages.
        limit: Take this many samples at most (>= 1); None for all.
        unit: What one sample of a `.txt` is: `paragraph` (between blank lines, its lines kept),
            `line` or `file`.
        size: Cut a square from the middle of each image and resize it to this side in pixels;
            None keeps (3, H, W) as it is.
        on_bad: "raise": a row without text (null, or without the field) is an error; "skip": it
            is left out, and at the end is said how many were.

    Raises:
        DataError: the source is missing, empty, of an unknown kind or damaged, or a package
            that its kind needs is not installed.

    Example:
        >>> samples = load([{"text": "Good morning."}, {"text": "Good night."}], limit=1)
        >>> list(samples), len(samples)
        (['Good morning.'], 1)
    """
    _check_options(limit, unit, size, on_bad)
    how = How(field, unit, size, skip=on_bad == "skip")
    if isinstance(source, str) and source.startswith(HUB):
        return _from_rows(_hub(source.removeprefix(HUB)), how, limit, source)
    if isinstance(source, str | PathLike):
        return _from_files(_paths(source), how, limit, str(source))
    if isinstance(source, list | tuple) and any(isinstance(item, PathLike) for item in source):
        listed = [_file(item, row) for row, item in enumerate(source)]
        return _from_files(listed, how, limit, f"{len(listed)} files from {listed[0]}")
    kind = type(source)
    return _from_rows(source, how, limit, f"{kind.__module__}.{kind.__qualname__}")


def _check_options(limit: int | None, unit: str, size: int | None, on_bad: str) -> None:
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1 sample or None, got {limit}")
    if unit not in UNITS:
        raise DataError(f"unit must be one of {', '.join(UNITS)}; got {unit!r}")
    if size is not None and size < 1:
        raise DataError(f"size must be at least 1 pixel or None, got {size}")
    if on_bad not in ("raise", "skip"):
        raise DataError(f"on_bad must be one of raise, skip; got {on_bad!r}")


def _from_files(paths: list[Path], how: How, limit: int | None, name: str) -> Samples:
    kinds = {ending(path) in IMAGES for path in paths}
    if len(kinds) > 1:
        raise DataError(f"{name}: files must be all texts or all images, got both")
    origin = _origin(name, how, limit)
    counts = [num_rows(path) for path in paths]
    known = [count for count in counts if count is not None]
    if len(known) == len(counts) and not how.skip:
        return CountedSamples(partial(_read_all, paths, how), origin, limit, sum(known))
    return Samples(partial(_read_all, paths, how), origin, limit)


def _read_all(paths: list[Path], how: How) -> Iterator[Any]:
    yield from sifted((sample for path in paths for sample in read(path, how)), how)


def _paths(given: str | PathLike[str]) -> list[Path]:
    source = Path(given)
    if not source.exists() and any(sign in str(given) for sign in "*?["):
        found = sorted(
            path for path in map(Path, glob(str(given), recursive=True)) if path.is_file()
        )
        if not found:
            raise DataError(f"no file matches the pattern {str(given)!r}")
        return found
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"no file or folder {str(source)!r}; give text itself as a list of strings")
    inside = sorted(path for path in source.rglob("*") if path.is_file())
    paths = [p for p in inside if not any(s.startswith(".") for s in p.relative_to(source).parts)]
    if not paths:
        raise DataError(f"{source}: a folder must hold files, got an empty one")
    return paths


def _file(item: Any, row: int) -> Path:
    if not isinstance(item, PathLike):
        raise DataError(f"row {row}: a list of files must hold paths only, got {item!r}")
    if not Path(item).is_file():
        raise DataError(f"row {row}: no file {str(item)!r}")
    return Path(item)


def _from_rows(source: Any, how: How, limit: int | None, name: str) -> Samples:
    _check_rows(source, name)
    columns = getattr(source, "column_names", None)
    if isinstance(columns, list):
        if how.field not in columns:
            raise missing_field(how.field, columns, name)
        source = source.select_columns([how.field]) if len(columns) > 1 else source
    origin = _origin(name, how, limit) | _fingerprint(source)
    opened = partial(_rows, source, how)
    if isinstance(source, Sized) and not how.skip:
        return CountedSamples(opened, origin, limit, len(source))
    return Samples(opened, origin, limit)


def _check_rows(source: Any, name: str) -> None:
    if isinstance(source, Mapping):
        raise DataError(f"{name}: rows must be in order, got a mapping; pass one of {list(source)}")
    if hasattr(source, "iterrows"):  # iterating a data frame would give its column names
        raise DataError(f"{name}: rows must be mappings; pass frame.to_dict('records')")
    if not isinstance(source, Iterable) or isinstance(source, Iterator | bytes | Set):
        raise DataError(
            f"{name}: a source must give the same rows at every iteration; "
            "pass a list, a path or a dataset"
        )


def _rows(source: Iterable[Any], how: How) -> Iterator[Any]:
    def values() -> Iterator[Any]:
        for number, row in enumerate(source):
            where = f"row {number}"
            fields = isinstance(row, Mapping)
            yield field_of(row, how.field, where) if fields else string(row, where)

    return sifted(values(), how)


def _hub(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{HUB}{name} needs datasets; run: pip install datasets") from error
    try:
        return datasets.load_dataset(name, split="train", streaming=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{HUB}{name}: no such data set with a split train: {error}") from error


def _origin(name: str, how: How, limit: int | None) -> dict[str, Any]:
    facts = {"source": name, "field": how.field, "unit": how.unit, "size": how.size, "limit": limit}
    return {**facts, "on_bad": "skip"} if how.skip else facts


def _fingerprint(source: Any) -> dict[str, str]:
    found = getattr(source, "_fingerprint", None)
    return {"fingerprint": found} if isinstance(found, str) else {}
