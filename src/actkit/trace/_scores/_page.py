"""Scores as one page that opens offline: the picture, the strongest parts, the settings."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from actkit.show import page as sheet
from actkit.show.graph import Circuit, circuit_svg
from actkit.show.heat_map import HeatMap, figure
from actkit.show.style import MINUS, PLUS

_STYLE = """
pre { white-space: pre-wrap; font: inherit; margin: 0; }
table { font-size: 14px; } td, th { padding: 3px 12px; text-align: left; }
td.number { text-align: right; } td.bar { width: 260px; }
td.bar div { height: 10px; border-radius: 2px; }
"""


def page(
    picture: HeatMap | Circuit,
    strongest: Sequence[tuple[str, float]],
    unit: str,
    report: str,
    facts: Mapping[str, Any],
) -> str:
    """Return the page.

    Args:
        picture: What is drawn.
        strongest: The parts of largest size with their scores.
        unit: Of the scores.
        report: What the bare network does.
        facts: Settings; "seconds" stands below the title too.
    """
    drawn = _drawn(picture, unit)
    body = (
        sheet.section("report", f"<pre>{escape(report)}</pre>", "What the network does")
        + sheet.section("picture", drawn)
        + sheet.section("top", _table(strongest, unit), "The strongest")
        + sheet.section("about", sheet.facts(facts.items()), "Settings")
    )
    below = f"{picture.subtitle}, {facts['seconds']} s"
    is_map = isinstance(picture, HeatMap)
    return sheet.page(picture.title, below, body, style=_STYLE, plotly=is_map)


def _drawn(picture: HeatMap | Circuit, unit: str) -> str:
    """Return the element of a picture: a circuit in SVG, a map by plotly."""
    if isinstance(picture, Circuit):
        return f'<div class="wide">{circuit_svg(picture)}</div>'
    shown = figure(picture).update_layout(title=None, margin={"t": 24})  # the page has a title
    spoken = f"{picture.title}: {unit or 'score'} by {' and '.join(picture.axes)}"
    return sheet.plot(shown, "map", spoken)


def _table(strongest: Sequence[tuple[str, float]], unit: str) -> str:
    """Return the strongest entries with bars as long as their scores."""
    largest = max((abs(v) for _, v in strongest), default=1.0) or 1.0
    rows = (
        f'<td>{escape(name)}</td><td class="number">{value:+.4f}</td><td class="bar">'
        f'<div style="width:{100 * abs(value) / largest:.1f}%;'
        f'background:{PLUS if value > 0 else MINUS}"></div></td>'
        for name, value in strongest
    )
    return sheet.table(("part", unit or "score", ""), rows)
