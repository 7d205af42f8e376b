"""A report as one self-contained page: the figures are interactive and open offline."""

import html as escape
import json
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from actkit.report.report import Figure, Page, Report
from actkit.report.terminal import number

INK, QUIET, PAPER, LINE = "#1c2330", "#5b6472", "#ffffff", "#dfe3ea"
COLOURS = ("#2457a6", "#d1603d", "#3f8f6b", "#8a5aa8", "#b08a1e")

_STYLE = f"""
body {{ margin: 0; background: #f4f6f9; color: {INK};
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }}
main {{ max-width: 980px; margin: 0 auto; padding: 28px 20px 80px; }}
nav {{ position: sticky; top: 0; z-index: 9; background: {PAPER};
  border-bottom: 1px solid {LINE}; }}
nav div {{ max-width: 980px; margin: 0 auto; padding: 10px 20px; display: flex; gap: 18px;
  flex-wrap: wrap; }}
nav a {{ color: {COLOURS[0]}; text-decoration: none; }}
section {{ background: {PAPER}; border: 1px solid {LINE}; border-radius: 10px;
  padding: 18px 24px; margin: 22px 0; scroll-margin-top: 56px; }}
h1 {{ margin: 8px 0 2px; font-size: 28px; }} h2 {{ margin: 4px 0 8px; font-size: 21px; }}
li {{ margin: 3px 0; }} .quiet {{ color: {QUIET}; font-size: 14px; }}
details {{ margin-top: 10px; }} summary {{ cursor: pointer; color: {QUIET}; }}
table {{ border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }}
td, th {{ padding: 3px 10px; text-align: right; border-bottom: 1px solid {LINE};
  font-variant-numeric: tabular-nums; }} td:first-child, th:first-child {{ text-align: left; }}
"""


def html(report: Report) -> str:
    """Return the page."""
    links = "".join(f'<a href="#{p.key}">{escape.escape(p.question)}</a>' for p in report.pages)
    sections = "".join(_section(p) for p in report.pages)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape.escape(report.title)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
<script>{get_plotlyjs()}</script></head>
<body><nav><div>{links}</div></nav><main>
<h1>{escape.escape(report.title)}</h1>
<p class="quiet">{escape.escape(str(report.about.get("data", "")))}</p>
{sections}
<section id="about"><h2>About this report</h2>{_facts(report.about)}</section>
</main></body></html>
"""


def _section(page: Page) -> str:
    findings = "".join(f"<li>{escape.escape(f)}</li>" for f in page.findings)
    figures = "".join(_drawn(f, f"{page.key}-{i}") for i, f in enumerate(page.figures))
    return f"""<section id="{page.key}"><h2>{escape.escape(page.question)}</h2>
<ul>{findings}</ul>{figures}
<p class="quiet">{escape.escape(page.note)}</p>
<details><summary>All numbers</summary>{_table(page.numbers)}</details></section>
"""


def _drawn(figure: Figure, name: str) -> str:
    """Return the figure's element and the script that draws it."""
    data = json.loads(_plot(figure).to_json())
    config = json.dumps({"displaylogo": False, "responsive": True})
    spec = json.dumps([data["data"], data["layout"]]).replace("</", "<\\/")
    return (
        f'<div class="figure" id="figure-{name}"></div><script>(() => {{ const s = {spec};'
        f'Plotly.newPlot("figure-{name}", s[0], s[1], {config}); }})();</script>'
    )


def _plot(figure: Figure) -> go.Figure:
    plot = go.Figure()
    if figure.kind == "map":
        rows = list(figure.series)
        plot.add_heatmap(
            x=list(figure.x), y=rows, z=[list(figure.series[r]) for r in rows],
            colorscale="Blues", colorbar={"title": figure.y_title},
        )  # fmt: skip
    for i, (name, values) in enumerate(figure.series.items()):
        style = {"name": name, "x": list(figure.x), "y": list(values)}
        colour = COLOURS[i % len(COLOURS)]
        if figure.kind == "lines":
            plot.add_scatter(mode="lines+markers", line={"color": colour}, **style)
        elif figure.kind == "bars":
            plot.add_bar(marker_color=colour, **style)
    plot.update_layout(
        title={"text": figure.title, "font": {"size": 15}}, height=360, template="plotly_white",
        margin={"l": 70, "r": 20, "t": 50, "b": 50}, font={"family": "system-ui", "color": INK},
        hovermode="x unified" if figure.kind == "lines" else "closest",
        legend={"orientation": "h", "y": 1.08, "x": 1, "xanchor": "right"},
    )  # fmt: skip
    plot.update_xaxes(title=figure.x_title, type="category")
    if figure.kind != "map":
        scale = {"type": "log", "dtick": 1} if figure.log else {"rangemode": "tozero"}
        plot.update_yaxes(title=figure.y_title, **scale)
    return plot


def _table(numbers: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(n for values in numbers.values() for n in values))
    head = "".join(f"<th>{escape.escape(n)}</th>" for n in ("site", *names))
    rows = "".join(
        f"<tr><td>{escape.escape(site)}</td>"
        + "".join(f"<td>{number(v[n]) if n in v else ''}</td>" for n in names)
        + "</tr>"
        for site, v in numbers.items()
    )
    return f"<table><tr>{head}</tr>{rows}</table>"


def _facts(about: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape.escape(k)}</td><td>{escape.escape(str(v))}</td></tr>"
        for k, v in about.items()
    )
    return f"<table>{rows}</table>"
