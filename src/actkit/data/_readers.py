"""How each kind of file is streamed: one function per ending, one sample in memory at a time."""

import csv
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO, cast

from actkit.core.errors import DataError
from actkit.data._images import read_image

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
UNITS = ("paragraph", "line", "file")


@dataclass(frozen=True, slots=True)
class How:
    """What to take from a file: the field of a row, the unit of a text, the side of a photo."""

    field: str = "text"
    unit: str = "paragraph"
    size: int | None = None


def read(path: Path, how: How) -> Iterator[Any]:
    """Stream one file; raise DataError if its ending is unknown or its content is damaged."""
    return READERS[ending(path)](path, how)


def ending(path: Path) -> str:
    """Return the file's known ending, for example `.jsonl.gz`."""
    name = path.name.lower()
    found = [known for known in READERS if name.endswith(known)]
    if not found:
        kind = "".join(path.suffixes[-2:]) or "no ending"
        raise DataError(f"{path}: the ending must be one of {' '.join(READERS)}; got {kind}")
    return max(found, key=len)


def field_of(row: Any, field: str, where: str) -> str:
    """Return the row's field; raise DataError unless it is there and is a string."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a row must be an object with fields, got {_show(row)}")
    if field not in row:
        raise missing_field(field, row, where)
    return string(row[field], f"{where}, field {field!r}")


def string(value: Any, where: str) -> str:
    """Return the value; raise DataError unless it is a string."""
    if not isinstance(value, str):
        raise DataError(f"{where}: a text must be a string, got {_show(value)}")
    return value


def missing_field(field: str, fields: Iterable[Any], where: str) -> DataError:
    """Return the error that names the fields which are there."""
    present = ", ".join(map(str, fields)) or "none"
    return DataError(f"{where}: no field {field!r}; fields: {present}; choose with field=...")


def num_rows(path: Path) -> int | None:
    """Return the number of samples where a file tells it without being read through."""
    kind = ending(path)
    if kind == ".parquet":
        with _parquet_file(path) as file:
            return int(file.metadata.num_rows)
    return 1 if kind in IMAGES else None


def _show(value: Any) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown[:60]}{'...' if len(shown) > 60 else ''}"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: text must be UTF-8: {error}") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: the file must be readable: {error}") from error


@contextmanager
def _lines(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    opener = OPENERS.get(path.suffix.lower(), open)
    with _readable(path), opener(path, "rt", encoding="utf-8-sig", newline=newline) as lines:
        yield cast("TextIO", lines)


def _text(path: Path, how: How) -> Iterator[str]:
    with _lines(path) as lines:
        if how.unit == "file":
            yield lines.read()
        elif how.unit == "line":
            yield from (line.rstrip("\n") for line in lines if line.strip())
        else:
            for filled, block in groupby(lines, key=lambda line: bool(line.strip())):
                if filled:
                    yield "".join(block).rstrip("\n")


def _jsonl(path: Path, how: How) -> Iterator[str]:
    with _lines(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{where}: a line must be JSON: {error}") from error
            yield field_of(row, how.field, where)


def _csv(path: Path, how: How) -> Iterator[str]:
    with _lines(path, newline="") as lines:
        rows = csv.reader(lines, strict=True)
        try:
            header = next(rows, [])
            if header.count(how.field) != 1:
                raise missing_field(how.field, header, f"{path}, header")
            column = header.index(how.field)
            for row in rows:
                if row and len(row) != len(header):
                    raise DataError(
                        f"{path}, line {rows.line_num}: a row must have the header's "
                        f"{len(header)} values, got {len(row)}"
                    )
                if row:
                    yield row[column]
        except csv.Error as error:
            raise DataError(f"{path}, line {rows.line_num}: must be CSV: {error}") from error


def _parquet(path: Path, how: How) -> Iterator[str]:
    with _parquet_file(path) as file:
        if how.field not in file.schema_arrow.names:
            raise missing_field(how.field, file.schema_arrow.names, str(path))
        row = 0
        for batch in file.iter_batches(batch_size=256, columns=[how.field]):
            for value in batch.column(0).to_pylist():
                yield string(value, f"{path}, row {row}, field {how.field!r}")
                row += 1


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError(f"{path}: Parquet needs pyarrow; run: pip install pyarrow") from error
    try:
        # So set, the reader streams a column chunk instead of loading all of it.
        with (
            _readable(path),
            ParquetFile(
                path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
            ) as file,
        ):
            yield file
    except ArrowException as error:
        raise DataError(f"{path}: must be a sound Parquet file: {error}") from error


def _image(path: Path, how: How) -> Iterator[Any]:
    yield read_image(path, how.size)


IMAGES = (".jpg", ".jpeg", ".png")
TEXTS = {".txt": _text, ".jsonl": _jsonl, ".csv": _csv}
READERS: dict[str, Callable[[Path, How], Iterator[Any]]] = {
    **{kind + packed: reader for kind, reader in TEXTS.items() for packed in ("", *OPENERS)},
    ".parquet": _parquet,
    **dict.fromkeys(IMAGES, _image),
}
