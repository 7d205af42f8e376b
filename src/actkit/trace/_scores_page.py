"""Scores as one page that opens offline: the picture, the strongest parts, the settings."""

import json
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from actkit.show.graph import EDGES, circuit_svg
from actkit.show.heat_map import (
    FONT,
    INK,
    LINE,
    MINUS,
    PAPER,
    PLUS,
    QUIET,
    figure,
    subtitle,
    title,
)

if TYPE_CHECKING:
    from actkit.trace._scores import Scores

CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtons": [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
}
"""Only these buttons: plotly's own set has one that sends the figure to a server."""
_STYLE = f"""
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: #f4f6f9; color: {INK}; font: 16px/1.55 {FONT}; }}
main {{ max-width: 980px; margin: 0 auto; padding: 0 20px 80px; }}
section {{ background: {PAPER}; border: 1px solid {LINE}; border-radius: 10px;
  padding: 16px 24px; margin: 22px 0; }}
h1 {{ margin: 28px 0 2px; font-size: 28px; line-height: 1.25; }}
h2 {{ margin: 4px 0 8px; font-size: 21px; }}
.quiet {{ color: {QUIET}; font-size: 14px; }} .wide {{ overflow-x: auto; }}
pre {{ white-space: pre-wrap; font: inherit; margin: 0; }}
table {{ border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }}
td, th {{ padding: 3px 12px; text-align: left; border-bottom: 1px solid {LINE}; }}
td.number {{ text-align: right; }} td.bar {{ width: 260px; }}
td.bar div {{ height: 10px; border-radius: 2px; }} #about td {{ overflow-wrap: anywhere; }}
@media (max-width: 600px) {{ section {{ padding: 12px 14px; margin: 14px -20px; }} }}
"""


def page(scores: "Scores", top: int) -> str:
    """Return the page: a circuit for edges, a map for all else."""
    edges = scores.axes == EDGES
    script, drawn = ("", f'<div class="wide">{circuit_svg(scores, 2 * top)}</div>') if edges else (
        _map(scores))  # fmt: skip
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title(scores))}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>{script}</head>
<body><main>
<h1>{escape(title(scores))}</h1>
<p class="quiet">{escape(subtitle(scores))}, {scores.seconds:.1f} s</p>
<section id="report"><h2>What the network does</h2><pre>{escape(scores.report)}</pre></section>
<section id="picture">{drawn}</section>
<section id="top"><h2>The strongest</h2>{_table(scores, top)}</section>
<section id="about"><h2>Settings</h2>{_facts(scores)}</section>
</main></body></html>
"""


def _map(scores: "Scores") -> tuple[str, str]:
    """Return plotly's script, and the element with the call that draws the map."""
    from plotly.offline import get_plotlyjs

    shown = figure(scores).update_layout(title=None, margin={"t": 24})  # the page has a title
    plot = json.loads(shown.to_json())
    spec = json.dumps([plot["data"], plot["layout"]]).replace("</", "<\\/")
    told = f"{title(scores)}: {scores.unit or 'score'} by {' and '.join(scores.axes)}"
    return f"<script>{get_plotlyjs()}</script>", (
        f'<div class="figure" id="map" role="group" aria-label="{escape(told)}"></div>'
        f"<script>(() => {{ const s = {spec};"
        f'Plotly.newPlot("map", s[0], s[1], {json.dumps(CONFIG)}); }})();</script>'
    )


def _table(scores: "Scores", top: int) -> str:
    """Return the strongest entries with bars as long as their scores."""
    rows = scores.top(top)
    largest = max((abs(v) for _, v in rows), default=1.0) or 1.0
    body = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{value:+.4f}</td><td class="bar">'
        f'<div style="width:{100 * abs(value) / largest:.1f}%;'
        f'background:{PLUS if value > 0 else MINUS}"></div></td></tr>'
        for name, value in rows
    )
    head = f"<tr><th>part</th><th>{escape(scores.unit or 'score')}</th><th></th></tr>"
    return f'<div class="wide"><table>{head}{body}</table></div>'


def _facts(scores: "Scores") -> str:
    known = int(scores.values.isfinite().sum())
    sizes = (f"{len(n)} {a}s" for a, n in zip(scores.axes, scores.names, strict=True))
    facts: Mapping[str, Any] = {
        "method": scores.method, "task": scores.task, "parts": scores.parts, "unit": scores.unit,
        "axes": " x ".join(sizes),
        "entries": f"{known} of {scores.values.numel()} have a score",
        "seconds": f"{scores.seconds:.1f}", **scores.facts,
    }  # fmt: skip
    rows = (f"<tr><td>{escape(k)}</td><td>{escape(str(v))}</td></tr>" for k, v in facts.items())
    return f"<table>{''.join(rows)}</table>"
