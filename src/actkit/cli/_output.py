"""What the commands share: how data and folders are opened, and how answers are printed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from actkit.core.errors import ActkitError

Source = Annotated[
    str,
    typer.Argument(
        help="smollm2, minilm, efficientnet-lite0, a Hub id, a folder, or a .gguf file."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def open_data(source: str | None) -> Any:
    """Open a user's data; None stays None."""
    if source is None:
        return None
    import actkit as ak

    return ak.data.load(source)


def make_folder(path: Path, option: str = "--out") -> None:
    """Make a folder before long work begins, or say why it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ActkitError(f"{option} needs a folder, got {path}: {error.strerror}") from error


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print columns that line up; the last one is as long as it likes."""
    columns = list(zip(*rows, strict=True))[:-1]
    widths = [max(map(len, column)) for column in columns]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        typer.echo("  ".join([*cells, row[-1]]))


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))
