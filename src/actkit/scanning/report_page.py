"""A report as one self-contained page: the figures are interactive and open offline."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from actkit.scanning.answer import Answer, Figure, Page
from actkit.scanning.format import number
from actkit.show import page as sheet
from actkit.show.style import COLOURS, INK, QUIET

HEIGHT, ROW = 320, 14
"""Pixels of a figure of lines, and of one row of a map."""
PLOT_FONT = "system-ui, sans-serif"

_STYLE = f"""
ul {{ padding-left: 20px; }} li {{ margin: 3px 0; }}
figure {{ margin: 18px 0 0; }} figcaption {{ font-weight: 600; font-size: 15px; }}
.answer {{ display: flex; gap: 8px 36px; flex-wrap: wrap; align-items: center;
  border-left: 4px solid {COLOURS[0]}; padding: 2px 16px; margin: 10px 0; }}
.answer b {{ display: block; font-size: 32px; line-height: 1.2; }}
.answer ul {{ list-style: none; margin: 0; padding: 0; color: {QUIET}; font-size: 14px; }}
details {{ margin-top: 10px; }} summary {{ cursor: pointer; color: {QUIET}; }}
table {{ font-size: 13px; }} td, th {{ padding: 3px 10px; text-align: right; }}
td:first-child, th:first-child, #about td {{ text-align: left; }}
.wide td, td:first-child {{ white-space: nowrap; }}
@media (max-width: 600px) {{ section {{ border-radius: 0; }} }}
"""


def render(title: str, about: Mapping[str, Any], pages: Sequence[Page]) -> str:
    """Return the page of a report.

    Args:
        title: What was scanned.
        about: Provenance: data, versions, model, weight hash, settings.
        pages: One for each question.
    """
    known = sheet.section("about", sheet.facts(_flat(about)), "About this report")
    return sheet.page(
        title,
        str(about.get("data", "")),
        "".join(map(_section, pages)) + known,
        links={page.key: page.question for page in pages},
        style=_STYLE,
    )


def _section(page: Page) -> str:
    findings = "".join(f"<li>{escape(f)}</li>" for f in page.findings)
    figures = "".join(_drawn(f, f"{page.key}-{i}") for i, f in enumerate(page.figures))
    body = f"""
{_answer(page.answer)}<ul>{findings}</ul>{figures}
<p class="quiet">{escape(page.note)}</p>
<details><summary>All numbers</summary>{_table(page.numbers)}</details>"""
    return sheet.section(page.key, body, page.question)


def _answer(answer: Answer | None) -> str:
    """Return the number of a page, large, with what it is held against beside it."""
    if answer is None:
        return ""
    beside = "".join(f"<li>{escape(line)}</li>" for line in answer.lines())
    return (
        f'<div class="answer"><div><b>{escape(answer.shown())}</b><span>{escape(answer.what)}'
        f"</span></div><ul>{beside}</ul></div>"
    )


def _drawn(figure: Figure, name: str) -> str:
    """Return the figure below its title."""
    drawn = sheet.plot(_plot(figure), f"figure-{name}", _spoken(figure))
    return f"<figure><figcaption>{escape(figure.title)}</figcaption>{drawn}</figure>"


def _spoken(figure: Figure) -> str:
    """Return what a reader hears who does not see the figure."""
    what = ", ".join(figure.series)
    return f"{figure.title}: {figure.y_title} by {figure.x_title}; {what}"


def _plot(figure: Figure) -> go.Figure:
    plot = go.Figure()
    if figure.kind == "map":
        _add_map(plot, figure)
    else:
        _add_lines(plot, figure)
    plot.update_layout(
        template="plotly_white",
        dragmode=False,
        margin={"l": 64, "r": 16, "t": 28, "b": 48},
        font={"family": PLOT_FONT, "color": INK, "size": 13},
        hoverlabel={"font": {"family": PLOT_FONT}},
    )
    plot.update_xaxes(title=figure.x_title, type="category", automargin=True, nticks=12)
    return plot


def _add_lines(plot: go.Figure, figure: Figure) -> None:
    shown = ".3~p" if figure.percent else ",.4~g"
    for i, (name, values) in enumerate(figure.series.items()):
        beside = name in figure.beside
        colour = QUIET if beside else COLOURS[i % len(COLOURS)]
        plot.add_scatter(
            name=name,
            x=list(figure.x),
            y=list(values),
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": "dot" if beside else "solid"},
            marker={"size": 5},
            hovertemplate=f"%{{y:{shown}}}",
        )
    plot.update_layout(
        height=HEIGHT,
        hovermode="x unified",
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    plot.update_yaxes(title=figure.y_title, automargin=True, **_scale(figure))


def _scale(figure: Figure) -> dict[str, Any]:
    """Return the range and ticks of the value axis."""
    values = [x for v in figure.series.values() for x in v if math.isfinite(x)]
    positive = [x for x in values if x > 0]
    if figure.log and positive:
        decades = math.log10(max(positive) / min(positive))
        return {"type": "log", "dtick": "D2" if decades < 2 else 1, "tickformat": ",~r"}
    if figure.percent:  # noise far below one per cent is not blown up to a landscape
        return {"range": [0, max([0.01, *(1.05 * x for x in values)])], "tickformat": ".3~p"}
    if values and not any(values):  # zeros alone would have one tick
        return {"range": [0, 1], "tickformat": ",.4~g"}
    return {"rangemode": "tozero", "tickformat": ",.4~g"}


def _add_map(plot: go.Figure, figure: Figure) -> None:
    rows = list(figure.series)
    shown = ".3~p" if figure.percent else ",.4~g"
    plot.add_heatmap(
        x=list(figure.x),
        y=rows,
        z=[list(figure.series[r]) for r in rows],
        zmin=0,
        colorscale="Blues",
        colorbar={"tickformat": shown, "thickness": 14},
        hovertemplate=f"{figure.x_title} %{{x}}, %{{y}}: %{{z:{shown}}}<extra></extra>",
    )
    plot.update_layout(height=max(HEIGHT, ROW * len(rows) + 90))
    plot.update_yaxes(autorange="reversed", automargin=True)


def _table(numbers: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(n for values in numbers.values() for n in values))
    rows = (
        f"<td>{escape(site)}</td>"
        + "".join(f"<td>{number(v[n]) if n in v else ''}</td>" for n in names)
        for site, v in numbers.items()
    )
    return sheet.table(("site", *names), rows)


def _flat(about: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in about.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", str(value)
