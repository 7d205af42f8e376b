"""A report as one self-contained page: the figures are interactive and open offline."""

import json
import math
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from actkit.scanning.format import number
from actkit.scanning.report import Answer, Figure, Page, Report

INK, QUIET, PAPER, LINE = "#1c2330", "#5b6472", "#ffffff", "#dfe3ea"
COLOURS = ("#d1603d", "#2457a6", "#3f8f6b", "#8a5aa8", "#b08a1e")
CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtons": [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
}
"""Only these buttons: plotly's own set has one that sends the figure to a server."""
HEIGHT, ROW = 320, 14
"""Pixels of a figure of lines, and of one row of a map."""

_STYLE = f"""
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: #f4f6f9; color: {INK};
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }}
main, nav div {{ max-width: 980px; margin: 0 auto; padding: 0 20px; }}
main {{ padding-bottom: 80px; }}
nav {{ position: sticky; top: 0; z-index: 9; background: {PAPER};
  border-bottom: 1px solid {LINE}; }}
nav div {{ display: flex; gap: 4px 20px; flex-wrap: wrap; padding: 10px 20px; font-size: 15px; }}
a {{ color: {COLOURS[1]}; text-decoration: none; }} a:hover {{ text-decoration: underline; }}
section {{ background: {PAPER}; border: 1px solid {LINE}; border-radius: 10px;
  padding: 16px 24px; margin: 22px 0; scroll-margin-top: 84px; }}
h1 {{ margin: 28px 0 2px; font-size: 28px; line-height: 1.25; }}
h2 {{ margin: 4px 0 8px; font-size: 21px; }}
ul {{ padding-left: 20px; }} li {{ margin: 3px 0; }}
figure {{ margin: 18px 0 0; }} figcaption {{ font-weight: 600; font-size: 15px; }}
.answer {{ display: flex; gap: 8px 36px; flex-wrap: wrap; align-items: center;
  border-left: 4px solid {COLOURS[0]}; padding: 2px 16px; margin: 10px 0; }}
.answer b {{ display: block; font-size: 32px; line-height: 1.2; }}
.answer ul {{ list-style: none; margin: 0; padding: 0; color: {QUIET}; font-size: 14px; }}
.quiet {{ color: {QUIET}; font-size: 14px; }}
details {{ margin-top: 10px; }} summary {{ cursor: pointer; color: {QUIET}; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }}
td, th {{ padding: 3px 10px; text-align: right; border-bottom: 1px solid {LINE}; }}
td:first-child, th:first-child, #about td {{ text-align: left; }}
.wide td, td:first-child {{ white-space: nowrap; }} #about td {{ overflow-wrap: anywhere; }}
@media (max-width: 600px) {{
  nav {{ position: static; }}
  section {{ padding: 12px 14px; border-radius: 0; margin: 14px -20px; }}
}}
"""


def render(report: Report) -> str:
    """Return the page."""
    links = "".join(f'<a href="#{p.key}">{escape(p.question)}</a>' for p in report.pages)
    sections = "".join(_section(p) for p in report.pages)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(report.title)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
<script>{get_plotlyjs()}</script></head>
<body><nav aria-label="Questions"><div>{links}</div></nav><main>
<h1>{escape(report.title)}</h1>
<p class="quiet">{escape(str(report.about.get("data", "")))}</p>
{sections}
<section id="about"><h2>About this report</h2>{_facts(report.about)}</section>
</main></body></html>
"""


def _section(page: Page) -> str:
    findings = "".join(f"<li>{escape(f)}</li>" for f in page.findings)
    figures = "".join(_drawn(f, f"{page.key}-{i}") for i, f in enumerate(page.figures))
    return f"""<section id="{escape(page.key)}"><h2>{escape(page.question)}</h2>
{_answer(page.answer)}<ul>{findings}</ul>{figures}
<p class="quiet">{escape(page.note)}</p>
<details><summary>All numbers</summary>{_table(page.numbers)}</details></section>
"""


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
    """Return the figure's element and the script that draws it."""
    plot = json.loads(_plot(figure).to_json())
    spec = json.dumps([plot["data"], plot["layout"]]).replace("</", "<\\/")
    config = json.dumps(CONFIG)
    place = f"figure-{escape(name)}"
    return (
        f"<figure><figcaption>{escape(figure.title)}</figcaption>"
        f'<div class="figure" id="{place}" role="group" aria-label="{escape(_spoken(figure))}">'
        f"</div></figure><script>(() => {{ const s = {spec};"
        f'Plotly.newPlot("{place}", s[0], s[1], {config}); }})();</script>'
    )


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
        template="plotly_white", dragmode=False, margin={"l": 64, "r": 16, "t": 28, "b": 48},
        font={"family": "system-ui, sans-serif", "color": INK, "size": 13},
        hoverlabel={"font": {"family": "system-ui, sans-serif"}},
    )  # fmt: skip
    plot.update_xaxes(title=figure.x_title, type="category", automargin=True, nticks=12)
    return plot


def _add_lines(plot: go.Figure, figure: Figure) -> None:
    shown = ".3~p" if figure.percent else ",.4~g"
    for i, (name, values) in enumerate(figure.series.items()):
        beside = name in figure.beside
        colour = QUIET if beside else COLOURS[i % len(COLOURS)]
        plot.add_scatter(
            name=name, x=list(figure.x), y=list(values), mode="lines+markers",
            line={"color": colour, "width": 2, "dash": "dot" if beside else "solid"},
            marker={"size": 5}, hovertemplate=f"%{{y:{shown}}}",
        )  # fmt: skip
    plot.update_layout(
        height=HEIGHT, hovermode="x unified", showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )  # fmt: skip
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
        x=list(figure.x), y=rows, z=[list(figure.series[r]) for r in rows], zmin=0,
        colorscale="Blues", colorbar={"tickformat": shown, "thickness": 14},
        hovertemplate=f"{figure.x_title} %{{x}}, %{{y}}: %{{z:{shown}}}<extra></extra>",
    )  # fmt: skip
    plot.update_layout(height=max(HEIGHT, ROW * len(rows) + 90))
    plot.update_yaxes(autorange="reversed", automargin=True)


def _table(numbers: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(n for values in numbers.values() for n in values))
    head = "".join(f'<th scope="col">{escape(n)}</th>' for n in ("site", *names))
    rows = "".join(
        f"<tr><td>{escape(site)}</td>"
        + "".join(f"<td>{number(v[n]) if n in v else ''}</td>" for n in names)
        + "</tr>"
        for site, v in numbers.items()
    )
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _facts(about: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in _flat(about))
    return f"<table>{rows}</table>"


def _flat(about: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in about.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", str(value)
