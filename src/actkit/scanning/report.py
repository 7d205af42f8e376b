"""What a scan found: pages of figures, numbers and findings; printed, as a page, as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from actkit.core.as_json import as_json
from actkit.core.writing import write_text
from actkit.scanning.format import number, percent


@dataclass(frozen=True)
class Figure:
    """One figure: lines over layers, or a map of layers by something.

    Attributes:
        kind: "lines" or "map".
        title: What is shown.
        x: Labels of the horizontal axis.
        x_title: What they are.
        y_title: What the values are, with the unit.
        series: Name to one value for each x; for a map one row for each name. NaN is a gap.
        log: Whether the values need a logarithmic axis.
        percent: Whether the values are shares in [0, 1], to be shown as percentages.
        beside: Those of the series that are of another network.
    """

    kind: str
    title: str
    x: tuple[str, ...]
    x_title: str
    y_title: str
    series: Mapping[str, tuple[float, ...]]
    log: bool = False
    percent: bool = False
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """The one number of a page, for the network and for those it is held against.

    Attributes:
        what: What the number is, with its unit.
        values: The scanned network's first, then its controls', by name; NaN where there is none.
        usual: The same of other networks of this kind, by name; they were measured once.
        percent: Whether it is a share in [0, 1], to be shown as a percentage.
    """

    what: str
    values: Mapping[str, float]
    usual: Mapping[str, float] = field(default_factory=dict)
    percent: bool = False

    def lines(self) -> list[str]:
        """Return "name: value" for every network beside the scanned one, the controls first."""
        (_, *controls), usual = self.values.items(), self.usual.items()
        return [f"{name}: {self.shown(x)}" for name, x in (*controls, *usual)]

    def shown(self, value: float | None = None) -> str:
        """Return a value as text; the scanned network's if None."""
        value = next(iter(self.values.values())) if value is None else value
        return percent(value) if self.percent else number(value)


@dataclass(frozen=True)
class Page:
    """One question, with its answer in words, in figures and in numbers.

    Attributes:
        key: Short name, used as an anchor and in JSON.
        question: What a person would ask.
        findings: Sentences that are computed from this scan.
        figures: The pictures.
        numbers: For each site its finished statistics.
        note: What was measured, and what was left out.
        answer: The one number, and what it is held against.
    """

    key: str
    question: str
    findings: tuple[str, ...]
    figures: tuple[Figure, ...]
    numbers: Mapping[str, Mapping[str, float]]
    note: str = ""
    answer: Answer | None = None


@dataclass(frozen=True)
class Report:
    """A finished scan.

    Attributes:
        title: What was scanned.
        about: Provenance: data, versions, model, weight hash, settings.
        pages: One for each question.
    """

    title: str
    about: Mapping[str, Any]
    pages: tuple[Page, ...] = ()

    def __repr__(self) -> str:
        """Return the title and the questions; `print` shows what was found."""
        return f"Report({self.title!r}, {', '.join(page.key for page in self.pages)})"

    def print(self) -> None:
        """Print a readable picture in the terminal."""
        from actkit.scanning.terminal import show

        show(self)

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained page that opens offline; return its path.

        Raises:
            DataError: The file cannot be written.
        """
        from actkit.scanning.page import render

        return write_text(path, render(self))

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the report as JSON, `null` where a number is NaN or infinite.

        Args:
            path: Also write it there.

        Raises:
            DataError: The file cannot be written.
        """
        text = as_json(asdict(self))
        if path is not None:
            write_text(path, text)
        return text
