"""A report in the terminal: for each question a line of bars over the layers, and the findings."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from actkit.scanning.answer import Figure, Page
from actkit.scanning.format import number, percent

BARS = "▁▂▃▄▅▆▇█"
WIDEST = 100
"""Columns of a paragraph at most."""
MARGIN = 8
"""Columns of the terminal between the parts of a figure."""


def show(
    title: str,
    about: Mapping[str, Any],
    pages: Iterable[Page],
    console: Console | None = None,
) -> None:
    """Print a report.

    Args:
        title: What was scanned.
        about: Provenance, of which "data" is printed.
        pages: One for each question.
        console: Where to print; the terminal if None.
    """
    console = console or Console()
    data = Text(str(about.get("data", "")), style="dim")
    console.print(Panel(Text.assemble((title, "bold"), "\n", data), expand=False))
    for page in pages:
        console.print()
        console.print(Text(page.question, style="bold cyan"))
        if page.answer is not None:
            beside = "; ".join(page.answer.lines())
            said = f"{page.answer.what}: {page.answer.shown()}"
            console.print(
                Text(_hung("  ", f"{said} ({beside})" if beside else said, console.width))
            )
        for figure in page.figures[:1]:
            for part in _drawn(figure, console.width):
                console.print(part)
        for finding in page.findings:
            console.print(Text(_hung("  • ", finding, console.width)))
        if page.note:
            console.print(Text(_hung("    ", page.note, console.width), style="dim"))


def _hung(mark: str, text: str, width: int) -> str:
    """Return a paragraph that hangs behind its mark."""
    room = min(width, WIDEST)
    return fill(text, room, initial_indent=mark, subsequent_indent=" " * len(mark))


def _drawn(figure: Figure, width: int) -> tuple[Text, Table]:
    """Draw each series as a row of bars, with its lowest and its highest value."""
    series = figure.series
    if figure.kind == "map":
        columns = zip(*series.values(), strict=True)
        series = {"mean": tuple(map(_mean, columns))}
    ends = {name: (_end(figure, v, min), _end(figure, v, max)) for name, v in series.items()}
    taken = max(len(name) + len(low) + len(high) for name, (low, high) in ends.items())
    every = max(1, math.ceil(len(figure.x) / max(8, width - taken - MARGIN)))
    table = Table(header_style="dim", box=None, padding=(0, 2, 0, 0))
    for name in ("", "", "lowest", "highest"):
        table.add_column(name, justify="right", no_wrap=True)
    table.columns[1].style, table.columns[1].justify = "blue", "left"
    shared = [x for values in series.values() for x in values]
    for name, values in series.items():
        table.add_row(name, bar_line(values[::every], shared, figure.log), *ends[name])
    return Text(_title(figure, every), style="dim"), table


def _title(figure: Figure, every: int) -> str:
    """Return what the bars show, and of which layers."""
    first, last = figure.x[0], figure.x[-1]
    span = f"{figure.x_title} {first}" if first == last else f"{figure.x_title} {first} to {last}"
    thinned = f", every {every}th" if every > 3 else ("", ", every 2nd", ", every 3rd")[every - 1]
    return f"{figure.title} ({figure.y_title}), {span}{thinned}{', log scale' * figure.log}"


def _end(figure: Figure, values: Sequence[float], pick: Callable[[Iterable[float]], float]) -> str:
    """Return the lowest or highest value and the layer that has it first."""
    finite = [x for x in values if math.isfinite(x)]
    if not finite:
        return number(math.nan)
    value = pick(finite)
    shown = percent(value) if figure.percent else number(value)
    return f"{shown} @ {figure.x[values.index(value)]}"


def _mean(values: Iterable[float]) -> float:
    finite = [x for x in values if math.isfinite(x)]
    return sum(finite) / len(finite) if finite else math.nan


def bar_line(values: Sequence[float], shared: Iterable[float], log: bool = False) -> str:
    """Return one character for each value, scaled to the range of `shared`.

    Bars start at 0, or at the lowest value if it is negative; on a logarithmic scale at the lowest
    positive value. What has no bar (NaN; 0 or less on a logarithmic scale) is a blank.

    Example:
        >>> bar_line([0.0, 3.5, 7.0], [0.0, 7.0]), bar_line([1.0, 0.0, 100.0], [1.0, 100.0], True)
        ('▁▅█', '▁ █')
    """

    def scaled(x: float) -> float:
        if log:
            return math.log(x) if x > 0 else math.nan
        return x

    heights = [s for x in shared if math.isfinite(s := scaled(x))]
    low, high = min(heights, default=0.0), max(heights, default=0.0)
    low = low if log else min(low, 0.0)
    steps = (len(BARS) - 1) / ((high - low) or 1.0)
    rows = [scaled(x) for x in values]
    return "".join(BARS[round((x - low) * steps)] if math.isfinite(x) else " " for x in rows)
