"""How each kind of file is streamed: one function per ending, one sample in memory at a time."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO, cast

from actkit.core.errors import DataError
from actkit.core.progress import note
from actkit.core.run.chats import is_chat
from actkit.data._images import read_image

CSV_FIELD = 2**31 - 1
"""Characters that a field of a CSV may have."""
UNITS = ("paragraph", "line", "file")


@dataclass(frozen=True, slots=True)
class How:
    """What to take from a file: the field of a row, the unit of a text, the side of a photo.

    Rows without text are errors, or left out if `skip` says so.
    """

    field: str = "text"
    unit: str = "paragraph"
    size: int | None = None
    skip: bool = False


class RowError(DataError):
    """A row without text; readers yield it, since the next row may be good."""


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


def field_of(row: Any, field: str, where: str) -> Any:
    """Return a row's field, a string or a chat's messages; a `RowError` if it is neither."""
    if not isinstance(row, Mapping):
        return RowError(f"{where}: a row must be an object with fields, got {_show(row)}")
    if field not in row:
        return missing_field(field, row, where)
    return string(row[field], f"{where}, field {field!r}")


def string(value: Any, where: str) -> Any:
    """Return a string or a chat's messages; a `RowError` if the value is neither."""
    if is_chat(value):
        return [{k: v for k, v in message.items() if v is not None} for message in value]
    if not isinstance(value, str):
        return RowError(f"{where}: a text must be a string, got {_show(value)}")
    return value


def sifted(stream: Iterable[Any], how: How) -> Iterator[Any]:
    """Yield the samples of a stream; raise what is bad in it, or leave it out and count it.

    Raises:
        RowError: A row has no text, and may not be left out.
    """
    left_out, first = 0, ""
    for value in stream:
        if not isinstance(value, RowError):
            yield value
        elif how.skip:
            left_out, first = left_out + 1, first or str(value)
        else:
            raise value
    if left_out:
        note(f"rows left out: {left_out} (first {first})")


def missing_field(field: str, fields: Iterable[Any], where: str) -> RowError:
    """Return the error that names the fields which are there."""
    present = ", ".join(map(str, fields)) or "none"
    return RowError(f"{where}: no field {field!r}; fields: {present}; choose with field=...")


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
    except _read_errors() as error:
        raise DataError(f"{path}: the file must be readable: {error}") from error


@contextmanager
def _lines(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    opener = OPENERS.get(path.suffix.lower(), open)
    with _readable(path), opener(path, "rt", encoding="utf-8-sig", newline=newline) as lines:
        yield cast("TextIO", lines)


def _open_zst(path: Path, mode: str, encoding: str, newline: str | None) -> TextIO:
    """Open a file of Zstandard, which Python itself reads from 3.14 on."""
    stream: Any
    try:
        import zstandard

        stream = zstandard.open(path, "rb")
    except ImportError:
        try:
            import pyarrow
        except ImportError as error:
            raise DataError(f"{path}: .zst needs zstandard; run: pip install zstandard") from error
        stream = io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return io.TextIOWrapper(stream, encoding=encoding, newline=newline)


def _read_errors() -> tuple[type[Exception], ...]:
    """Return what is raised on damaged files, by the reader of Zstandard too if it is in use."""
    known = (OSError, EOFError, zlib.error, lzma.LZMAError)
    error = getattr(sys.modules.get("zstandard"), "ZstdError", None)
    return known if error is None else (*known, error)


OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": _open_zst,
}


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


def _jsonl(path: Path, how: How) -> Iterator[Any]:
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


def _json(path: Path, how: How) -> Iterator[Any]:
    """Read one list of rows; a file of rows line by line, as some are named .json, also is one."""
    with _lines(path) as lines:
        content = lines.read()
    try:
        rows = json.loads(content)
    except ValueError as error:
        if "Extra data" in str(error):
            yield from _jsonl(path, how)
            return
        raise DataError(f"{path}: must be JSON: {error}") from error
    if not isinstance(rows, list):
        kind = f"an object with {', '.join(rows)}" if isinstance(rows, Mapping) else _show(rows)
        raise DataError(f"{path}: JSON must be a list of rows, got {kind}")
    for number, row in enumerate(rows):
        where = f"{path}, row {number}"
        yield string(row, where) if isinstance(row, str) else field_of(row, how.field, where)


def _tsv(path: Path, how: How) -> Iterator[Any]:
    yield from _csv(path, how, "\t")


def _csv_rows(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """Yield rows whose fields may be long; the limit of the module csv is one for all its users."""
    while True:
        before = csv.field_size_limit(CSV_FIELD)
        try:
            row = next(rows, None)
        finally:
            csv.field_size_limit(before)
        if row is None:
            return
        yield row


def _csv(path: Path, how: How, delimiter: str = ",") -> Iterator[Any]:
    with _lines(path, newline="") as lines:
        rows = csv.reader(lines, strict=True, delimiter=delimiter)
        try:
            header = next(_csv_rows(rows), [])
            if header.count(how.field) != 1:
                raise missing_field(how.field, header, f"{path}, header")
            column = header.index(how.field)
            for row in _csv_rows(rows):
                if row and len(row) != len(header):
                    raise DataError(
                        f"{path}, line {rows.line_num}: a row must have the header's "
                        f"{len(header)} values, got {len(row)}"
                    )
                if row:
                    yield row[column]
        except csv.Error as error:
            raise DataError(f"{path}, line {rows.line_num}: must be CSV: {error}") from error


def _parquet(path: Path, how: How) -> Iterator[Any]:
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
TEXTS: dict[str, Callable[[Path, How], Iterator[Any]]] = {
    ".txt": _text,
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
}
READERS: dict[str, Callable[[Path, How], Iterator[Any]]] = {
    **{kind + packed: reader for kind, reader in TEXTS.items() for packed in ("", *OPENERS)},
    ".parquet": _parquet,
    **dict.fromkeys(IMAGES, _image),
}
