"""What a scan found: pages of figures, numbers and findings; printed, as a page, as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One figure: lines or bars over layers, or a map of layers by something.

    Attributes:
        kind: "lines", "bars" or "map".
        title: What is shown.
        x: Labels of the horizontal axis.
        x_title: What they are.
        y_title: What the values are, with the unit.
        series: Name to one value for each x; for a map one row for each name.
        log: Whether the values need a logarithmic axis.
    """

    kind: str
    title: str
    x: tuple[str, ...]
    x_title: str
    y_title: str
    series: Mapping[str, tuple[float, ...]]
    log: bool = False


@dataclass(frozen=True)
class Page:
    """One question, with its answer in words, in figures and in numbers.

    Attributes:
        key: Short name, used as an anchor and in JSON.
        question: What a person would ask.
        findings: Sentences whose numbers are computed from this scan.
        figures: The pictures.
        numbers: For each site its finished statistics.
        note: How it was measured, and what was left out.
    """

    key: str
    question: str
    findings: tuple[str, ...]
    figures: tuple[Figure, ...]
    numbers: Mapping[str, Mapping[str, float]]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """A finished scan.

    Attributes:
        title: What was scanned.
        about: Provenance: versions, model, weight hash, data, settings.
        pages: One for each question.
    """

    title: str
    about: Mapping[str, Any]
    pages: tuple[Page, ...] = field(default=())

    def print(self) -> None:
        """Print a readable picture in the terminal."""
        from actkit.report.terminal import show

        show(self)

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained page that opens offline; return its path."""
        from actkit.report.page import html

        return _written(Path(path), html(self))

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the report as JSON; write it too if a path is given."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False)
        if path is not None:
            _written(Path(path), text)
        return text


def _written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
