"""One page that opens offline: its frame, and the pieces that every page is made of."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from plotly.offline import get_plotlyjs

from actkit.show.style import CONFIG, PAGE


def page(
    title: str,
    below: str,
    body: str,
    *,
    links: Mapping[str, str] | None = None,
    style: str = "",
    plotly: bool = True,
) -> str:
    """Return a page.

    Args:
        title: Its title, as text.
        below: A line below the title, as text.
        body: The sections, as HTML.
        links: The name of each section that the bar at the top leads to, by its id; None for no
            bar.
        style: Rules beside `style.PAGE`, in CSS.
        plotly: Whether the page carries plotly's code, without which `plot` draws nothing.
    """
    script = f"<script>{get_plotlyjs()}</script>" if plotly else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{PAGE}{style}</style>
{script}</head>
<body>{_bar(links)}<main>
<h1>{escape(title)}</h1>
<p class="quiet">{escape(below)}</p>
{body}
</main></body></html>
"""


def _bar(links: Mapping[str, str] | None) -> str:
    if links is None:
        return ""
    anchors = "".join(f'<a href="#{key}">{escape(name)}</a>' for key, name in links.items())
    return f'<nav aria-label="Questions"><div>{anchors}</div></nav>'


def section(key: str, body: str, heading: str = "") -> str:
    """Return a section.

    Args:
        key: Its id, to link to.
        body: What stands in it, as HTML.
        heading: As text; none if it is empty.
    """
    head = f"<h2>{escape(heading)}</h2>" if heading else ""
    return f'<section id="{escape(key)}">{head}{body}</section>\n'


def plot(figure: Any, key: str, spoken: str) -> str:
    """Return an element, and the script that draws one of plotly's figures into it.

    Args:
        figure: One of plotly's.
        key: The element's id.
        spoken: What a reader hears who does not see the figure, as text.
    """
    drawn = json.loads(figure.to_json())
    spec = json.dumps([drawn["data"], drawn["layout"]]).replace("</", "<\\/")
    place = escape(key)
    return (
        f'<div class="figure" id="{place}" role="group" aria-label="{escape(spoken)}"></div>'
        f"<script>(() => {{ const s = {spec};"
        f'Plotly.newPlot("{place}", s[0], s[1], {json.dumps(CONFIG)}); }})();</script>'
    )


def table(head: Sequence[str], rows: Iterable[str]) -> str:
    """Return a table that scrolls sideways where it is too wide.

    Args:
        head: Names of the columns, as text.
        rows: The cells of each row, as HTML.
    """
    named = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{named}</tr>{body}</table></div>'


def facts(known: Iterable[tuple[str, object]]) -> str:
    """Return a table of names and what is known of each."""
    rows = (f"<tr><td>{escape(k)}</td><td>{escape(str(v))}</td></tr>" for k, v in known)
    return f"<table>{''.join(rows)}</table>"
