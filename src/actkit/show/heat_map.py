"""Maps of numbers: a figure of plotly's, or plain SVG, with signed colours around zero.

Shapes: Y rows, X columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from actkit.core.errors import InputError
from actkit.core.writing import write_text
from actkit.show.style import FONT, INK, LINE, MINUS, NONE, PAPER, PLUS, QUIET, ZERO

MOST_CELLS = 20_000
"""Most cells of a map as SVG; more of them no reader could tell apart."""
_LONGEST, _MOST_TICKS, _TOP = 14, 40, 64


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Numbers along one axis or two, and what is written around them.

    Attributes:
        values: (Y,) or (Y, X); NaN where there is none. Y goes upwards, X across.
        names: What the entries along each axis are called.
        axes: What the axes are: "layer", "head", "position".
        title: What is shown.
        subtitle: Where the numbers come from, and their unit.
        column: What the one column is called where there is one axis.
    """

    values: Tensor
    names: Sequence[Sequence[str]]
    axes: Sequence[str]
    title: str = ""
    subtitle: str = ""
    column: str = ""


def figure(heat: HeatMap) -> Any:
    """Return the map as a figure of plotly's.

    Raises:
        InputError: There are more than two axes, or one has no entry.
    """
    import plotly.graph_objects as go

    z_YX, up, across = _grid(heat)
    size = _size(z_YX)
    plot = go.Figure()
    plot.add_heatmap(
        z=[[None if math.isnan(v) else v for v in row] for row in z_YX.tolist()],
        customdata=[[f"{escape(a)}, {escape(b)}" for b in across.told] for a in up.told],
        zmin=-size,
        zmax=size,
        colorscale=[[0, MINUS], [0.5, ZERO], [1, PLUS]],
        xgap=0.5,
        ygap=0.5,
        hovertemplate="%{customdata}: %{z:.4~g}<extra></extra>",
        colorbar={"thickness": 12, "outlinewidth": 0, "tickformat": ".3~g"},
    )
    rows, columns = z_YX.shape
    plot.update_layout(
        template="plotly_white",
        plot_bgcolor=NONE,
        font={"family": FONT, "color": INK, "size": 13},
        title={
            "text": f"<b>{escape(heat.title)}</b><br><sub>{escape(heat.subtitle)}</sub>",
            "x": 0,
            "xref": "paper",
            "font": {"size": 17},
        },
        height=max(260, 170 + 15 * min(rows, 60)),
        margin={"l": 64, "r": 16, "t": 76, "b": 56},
        width=None if columns > 1 else 320,
    )
    for axis, shown in ((plot.update_xaxes, across), (plot.update_yaxes, up)):
        ticks = shown.ticks()
        axis(
            title=shown.title,
            tickvals=ticks,
            ticktext=[escape(shown.labels[i]) for i in ticks],
            showgrid=False,
            zeroline=False,
            automargin=True,
            ticks="",
            showline=True,
            mirror=True,
            linecolor=LINE,
        )
    plot.update_xaxes(tickangle=-45 if across.wordy else 0)
    return plot


def svg(heat: HeatMap) -> str:
    """Return the map as SVG text, to be opened, printed or set into a page.

    Raises:
        InputError: There are more than two axes, or more cells than can be told apart.
    """
    z_YX, up, across = _grid(heat)
    rows, columns = z_YX.shape
    if rows * columns > MOST_CELLS:
        raise InputError(
            f"a map as .svg has up to {MOST_CELLS:,} cells, got {rows} x {columns}; write .html"
        )
    size, wide = _size(z_YX), max(9, min(30, 640 // columns))
    high = 18 if rows <= _MOST_TICKS else max(3, 720 // rows)
    left, bottom = 30 + 7 * max(len(up.labels[i]) for i in up.ticks()), _TOP + high * rows
    cells = [
        f'<rect x="{left + wide * x:g}" y="{bottom - high * (y + 1):g}" width="{wide - 0.5:g}" '
        f'height="{high - 0.5:g}" fill="{_colour(v, size)}"><title>{escape(up.told[y])}, '
        f"{escape(across.told[x])}: {v:.4g}</title></rect>"
        for y, row in enumerate(z_YX.tolist())
        for x, v in enumerate(row)
    ]
    middle = (_TOP + bottom) / 2
    beside = [
        _text(left - 6, bottom - high * (y + 0.5) + 4, up.labels[y], "end") for y in up.ticks()
    ]
    beside.append(_text(14, middle, up.title, "middle", f' transform="rotate(-90 14 {middle:g})"'))
    right = left + wide * columns
    below, deep = _below(across, left, wide, bottom)
    below.append(_text((left + right) / 2, bottom + deep + 26, across.title, "middle"))
    outline = (
        f'<rect x="{left - 1:g}" y="{_TOP - 1}" width="{wide * columns + 1.5:g}" '
        f'height="{high * rows + 1.5:g}" fill="none" stroke="{LINE}"/>'
    )
    shapes = [outline, *cells, *beside, *below, _bar(right + 22, size)]
    return framed(right + 110, bottom + deep + 40, heat.title, heat.subtitle, shapes)


def _below(across: "_Axis", left: float, wide: float, bottom: float) -> tuple[list[str], float]:
    """Return the names of the columns, words turned, and how far down they reach."""
    named, deep = [], 10.0
    for x in across.ticks():
        middle, name = left + wide * (x + 0.5), across.labels[x]
        if across.wordy:
            turned = f' transform="rotate(-45 {middle + 4:g} {bottom + 14:g})"'
            named.append(_text(middle + 4, bottom + 14, name, "end", turned))
            deep = max(deep, 5.2 * len(name))
        else:
            named.append(_text(middle, bottom + 16, name, "middle"))
    return named, deep


def framed(width: float, height: float, title: str, subtitle: str, shapes: Sequence[str]) -> str:
    """Return shapes as an SVG picture with a title, at least as wide as that."""
    width = max(width, 8.4 * len(title) + 40, 6.2 * len(subtitle) + 40)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" font-family="{escape(FONT)}" font-size="12" '
        f'fill="{INK}" role="img"><title>{escape(title)}</title>\n'
        f'<rect width="100%" height="100%" fill="{PAPER}"/>\n'
        f'<text x="14" y="26" font-size="16" font-weight="600">{escape(title)}</text>\n'
        f'<text x="14" y="46" fill="{QUIET}">{escape(subtitle)}</text>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


def write(heat: HeatMap, path: str | PathLike[str]) -> Any:
    """Write the map by the path's suffix, .html or .svg; return the figure.

    Raises:
        InputError: The map cannot be drawn, or the suffix is another one.
        DataError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".html", ".svg"):
        raise InputError(f"a picture is written as .html or .svg, got {path.name!r}")
    plot = figure(heat)
    if path.suffix == ".svg":
        write_text(path, svg(heat))
    else:
        write_text(path, plot.to_html(include_plotlyjs=True))
    return plot


def label(name: str) -> str:
    r"""Return a token or a name as it can be read on an axis.

    Example:
        >>> label(" Mary"), label("( John)"), label("\n"), label(" "), label("internationalization")
        ('Mary', '(John)', '↵', '␣', 'internationali…')
    """
    inner = name[1:-1] if name.startswith("(") and name.endswith(")") and len(name) > 2 else name
    shown = inner.replace("\n", "↵").replace("\t", "⇥")
    shown = "".join(c for c in shown if c.isprintable()).strip() or "␣"
    shown = shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"
    return shown if inner == name else f"({shown})"


class _Axis:
    """One axis of a map: its title, and what its rows or columns are called."""

    def __init__(self, title: str, names: Sequence[str]) -> None:
        self.labels = [label(str(name)) for name in names]
        self.wordy = max(map(len, self.labels)) > 3
        self.title = "token" if title == "position" and self.wordy else title
        at = title == "position" and self.wordy
        self.told = [f"{title} {f'{i} {x}' if at else x}" for i, x in enumerate(self.labels)]

    def ticks(self) -> list[int]:
        """Return which are named: all, or as many evenly spaced ones as can be read."""
        step = math.ceil(len(self.labels) / _MOST_TICKS)
        nice = next(s for k in range(9) for s in (10**k, 2 * 10**k, 5 * 10**k) if s >= step)
        return list(range(0, len(self.labels), nice))


def _grid(heat: HeatMap) -> tuple[Tensor, _Axis, _Axis]:
    """Return (Y, X) values and their axes; of one axis alone a map of one column."""
    z, axes, names = heat.values, heat.axes, heat.names
    if z.dim() == 1:
        return z[:, None], _Axis(axes[0], names[0]), _Axis("", [heat.column])
    if z.dim() != 2 or not z.numel():
        raise InputError(f"a map shows two axes with entries, got {axes} of shape {tuple(z.shape)}")
    return z, _Axis(axes[0], names[0]), _Axis(axes[1], names[1])


def _size(z: Tensor) -> float:
    """Return the largest size of a finite number, 1 if all are zero."""
    finite = z[z.isfinite()]
    return float(finite.abs().max()) or 1.0 if finite.numel() else 1.0


def _colour(value: float, size: float) -> str:
    """Return the colour of one number: white at zero, full at `size` and beyond."""
    if math.isnan(value):
        return NONE
    share = max(-1.0, min(1.0, value / size))
    end = PLUS if share > 0 else MINUS
    mixed = (round(255 + abs(share) * (int(end[i : i + 2], 16) - 255)) for i in (1, 3, 5))
    return "#" + "".join(f"{c:02x}" for c in mixed)


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _bar(x: float, size: float) -> str:
    """Return the scale of colours."""
    steps = [size * (1 - i / 20) for i in range(41)]
    boxes = "".join(
        f'<rect x="{x:g}" y="{_TOP + 3 * i}" width="12" height="3.2" fill="{_colour(v, size)}"/>'
        for i, v in enumerate(steps)
    )
    ends = zip((_TOP + 8, _TOP + 66, _TOP + 124), (size, 0.0, -size), strict=True)
    return boxes + "".join(_text(x + 18, y, f"{v:.3g}", "start") for y, v in ends)
