"""What a question is answered with: a number, sentences, figures; plain data, drawn elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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
