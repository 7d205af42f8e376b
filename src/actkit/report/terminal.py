"""A report in the terminal: for each question a line of bars over the layers, and the findings."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from actkit.report.report import Figure, Report

BARS = "▁▂▃▄▅▆▇█"


def show(report: Report, console: Console | None = None) -> None:
    """Print the report."""
    console = console or Console()
    console.print(Panel(Text(report.title, style="bold"), subtitle=_about(report)))
    for page in report.pages:
        console.print()
        console.print(f"[bold cyan]{escape(page.question)}[/]")
        for figure in page.figures:
            console.print(_drawn(figure))
        for finding in page.findings:
            console.print(f"  • {escape(finding)}", highlight=False)
        if page.note:
            console.print(f"  [dim]{escape(page.note)}[/]", highlight=False)


def _about(report: Report) -> str:
    return escape(str(report.about.get("data", "")))


def _drawn(figure: Figure) -> Table:
    """Draw each series as a row of bars, with its lowest and highest value."""
    table = Table(title=figure.title, title_justify="left", title_style="dim", box=None)
    table.add_column("", justify="right")
    first, last = figure.x[0], figure.x[-1]
    table.add_column(f"{figure.x_title} {first} to {last}" + (" (log)" if figure.log else ""))
    table.add_column("lowest", justify="right")
    table.add_column("highest", justify="right")
    values = list(figure.series.items())
    if figure.kind == "map":
        columns = list(zip(*(v for _, v in values), strict=True))
        values = [("mean over heads", tuple(sum(c) / len(c) for c in columns))]
    shared = [x for _, v in values for x in v]
    for name, series in values:
        bars = bar_line(series, figure.log, shared)
        table.add_row(
            name, bars, _at(figure, series, min(series)), _at(figure, series, max(series))
        )
    return table


def _at(figure: Figure, series: Sequence[float], value: float) -> str:
    """Return a value and where it is first reached."""
    return f"{number(value)} @ {figure.x[list(series).index(value)]}"


def bar_line(series: Sequence[float], log: bool, shared: Sequence[float]) -> str:
    """Return one block character for each value, scaled to the range of `shared`."""

    def scaled(x: float) -> float:
        return math.log(max(x, 1e-12)) if log else x

    low, high = min(map(scaled, shared)), max(map(scaled, shared))
    low = min(low, 0.0) if not log else low
    span = (high - low) or 1.0
    return "".join(BARS[round((scaled(x) - low) / span * (len(BARS) - 1))] for x in series)


def number(x: float) -> str:
    """Return a number as people write it: 22,543 or 13.7 or 0.0031."""
    if x == 0 or not math.isfinite(x):
        return f"{x:g}"
    if abs(x) >= 1000:
        return f"{x:,.0f}"
    return f"{x:.3g}"
