"""Results on their way to a file: folders are made, and what cannot be written is one line."""

from os import PathLike
from pathlib import Path

from actkit.core.errors import DataError


def write_text(path: str | PathLike[str], text: str) -> Path:
    """Write a text; return where it is.

    Args:
        path: The file; folders that are missing are made, an old file is replaced.
        text: Written as UTF-8.

    Raises:
        DataError: The file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"results need a file that can be written, got {path}: {reason}") from error
    return path
