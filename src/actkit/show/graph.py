"""A circuit as a picture: the strongest edges between heads and MLPs, layer above layer.

Shapes: R receivers, S senders.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from actkit.core.errors import InputError
from actkit.show.heat_map import INK, LINE, MINUS, PLUS, QUIET, framed

if TYPE_CHECKING:
    from actkit.trace._scores import Scores

EDGES = ("receiver", "sender")
WIDTH, ROW, NODE, HEIGHT = 96, 66, 74, 24
"""Pixels: of a column, of a row, and of the box of a node."""
PORTS = {"q": -22, "k": 0, "v": 22}
"""Where queries, keys and values enter a node, left to right of its middle."""
_TOP, _LEFT, _THICK = 70, 84, 7.0
_PORT = re.compile(r"^(?P<node>(?:head|kv) \d+\.\d+) (?P<port>[qkv])$")
_PLACE = re.compile(r"^(?P<kind>head|kv|group|mlp) (?P<layer>\d+)(?:\.(?P<index>\d+))?$")
_RANK = {"kv": 0, "head": 1, "group": 1, "mlp": 2}


@dataclass(frozen=True)
class Edge:
    """One edge of a circuit: the nodes that it joins, where it enters, and its score."""

    sender: str
    receiver: str
    port: str
    score: float

    def __str__(self) -> str:
        """Return the edge in words."""
        return f"{self.sender} -> {f'{self.receiver} {self.port}'.strip()}: {self.score:+.4g}"


def edges(scores: "Scores", top: int) -> list[Edge]:
    """Return the strongest edges, zeros left out; q, k and v of a head are ports of one node.

    Raises:
        InputError: The scores are not of edges, or `top` is no positive number.
    """
    if scores.axes != EDGES:
        raise InputError(f"a circuit needs scores with axes {EDGES}, got {scores.axes}")
    if top < 1:
        raise InputError(f"a circuit needs at least one edge, got top={top}")
    found = []
    for receiver, sender in scores.ranked()[:top]:
        score = float(scores.values[receiver, sender])
        if score:
            node, port = split(scores.names[0][receiver])
            found.append(Edge(scores.names[1][sender], node, port, score))
    return found


def split(receiver: str) -> tuple[str, str]:
    """Return the node of a receiver, and its port.

    Example:
        >>> split("head 3.5 q"), split("mlp 2")
        (('head 3.5', 'q'), ('mlp 2', ''))
    """
    found = _PORT.match(receiver)
    return (found["node"], found["port"]) if found else (receiver, "")


def place(node: str, last: int) -> tuple[int, int, int]:
    """Return layer, rank within the layer, and index of a node.

    The input lies below all blocks, and what else is no part of a block above them.
    """
    found = _PLACE.match(node)
    if found is None:
        return (-1, 0, 0) if node in ("input", "embeddings") else (last + 1, 0, 0)
    return int(found["layer"]), _RANK[found["kind"]], int(found["index"] or 0)


def groups(scores: "Scores") -> dict[str, list[str]]:
    """Return the query heads that share each key-value head's keys and values, by their names."""
    heads, shared = defaultdict[int, list[str]](list), defaultdict[int, list[str]](list)
    for names, pattern, found in (
        (scores.names[1], r"head (\d+)\.\d+$", heads),
        (dict.fromkeys(split(n)[0] for n in scores.names[0]), r"(?:kv|group) (\d+)\.\d+$", shared),
    ):
        for name in names:
            if met := re.match(pattern, name):
                found[int(met[1])].append(name)
    return {
        name: heads[layer][i * len(heads[layer]) // len(names) :][: len(heads[layer]) // len(names)]
        for layer, names in shared.items()
        for i, name in enumerate(names)
    }


def circuit_svg(scores: "Scores", top: int = 40) -> str:
    """Return the strongest edges as SVG: width is the size of a score, colour its sign.

    Only nodes that an edge touches are drawn; time runs upwards. A dashed line joins a key-value
    head to those heads drawn that read with its keys and values.
    """
    drawn = edges(scores, top)
    nodes = list(dict.fromkeys(n for e in drawn for n in (e.sender, e.receiver)))
    shares = [(k, h) for k, own in groups(scores).items() for h in own if {k, h} <= {*nodes}]
    at = _laid_out(nodes, [*((e.sender, e.receiver) for e in drawn), *shares], scores)
    largest = max((abs(e.score) for e in drawn), default=1.0)
    width = max([520.0, *(x + NODE for x, _ in at.values())])
    height = max([_TOP + 40.0, *(y + HEIGHT + 46 for _, y in at.values())])
    lines = [f'<path d="{_path(at[a], at[b])}" fill="none" stroke="{QUIET}" stroke-width="1" '
             'stroke-dasharray="3 3"/>' for a, b in shares]  # fmt: skip
    for edge in reversed(drawn):  # the strongest on top
        thick = max(0.8, _THICK * abs(edge.score) / largest)
        lines.append(
            f'<path d="{_path(at[edge.sender], at[edge.receiver], edge.port)}" fill="none" '
            f'stroke="{PLUS if edge.score > 0 else MINUS}" stroke-width="{thick:.2g}" '
            f'stroke-opacity="0.62"><title>{escape(str(edge))}</title></path>'
        )
    boxes = [_box(node, *at[node]) for node in nodes]
    for node, port in dict.fromkeys((e.receiver, e.port) for e in drawn if e.port):
        x, y = at[node]
        boxes.append(f'<text x="{x + PORTS[port] + 4:g}" y="{y + HEIGHT / 2 + 10:g}" '
                     f'font-size="10" fill="{QUIET}">{port}</text>')  # fmt: skip
    return framed(width, height, scores, [*_layers(at, scores, width), *lines, *boxes,
                                          *_legend(drawn, largest, height)])  # fmt: skip


def _laid_out(
    nodes: Sequence[str], joined: Sequence[tuple[str, str]], scores: "Scores"
) -> dict[str, tuple[float, float]]:
    """Return the centre of each node: rows by depth, in them near the nodes they are joined to."""
    rows = defaultdict[tuple[int, int], list[str]](list)
    last = last_layer(scores)
    for node in sorted(nodes, key=lambda n: place(n, last)):
        rows[place(node, last)[:2]].append(node)
    beside = defaultdict[str, list[str]](list)
    for a, b in joined:
        beside[a].append(b)
        beside[b].append(a)
    widest = max(map(len, rows.values()), default=1)
    x = {
        n: WIDTH * (i + (widest - len(row)) / 2) for row in rows.values() for i, n in enumerate(row)
    }
    for turn in range(8):
        for _, row in sorted(rows.items(), reverse=turn % 2 == 1):
            mean = {n: sum(x[b] for b in beside[n]) / len(beside[n]) for n in row}
            row.sort(key=lambda n: mean[n])
            middle = sum(mean.values()) / len(row)
            start = min(max(0.0, middle - WIDTH * (len(row) - 1) / 2), WIDTH * (widest - len(row)))
            x |= {n: start + WIDTH * i for i, n in enumerate(row)}
    heights = {key: i for i, key in enumerate(sorted(rows, reverse=True))}
    return {
        n: (_LEFT + NODE / 2 + x[n], _TOP + HEIGHT / 2 + ROW * heights[key])
        for key, row in rows.items()
        for n in row
    }


def _path(start: tuple[float, float], end: tuple[float, float], port: str = "") -> str:
    """Return a curve upwards; one that passes rows in its own column swings aside."""
    (x0, y0), (x1, y1) = start, end
    x1 += PORTS.get(port, 0)
    y0, y1 = y0 - HEIGHT / 2, y1 + HEIGHT / 2
    rise, swing = (y0 - y1) / 2, 0.0
    if abs(x0 - x1) < WIDTH / 2 and y0 - y1 > ROW:
        swing = min(0.18 * (y0 - y1) + 34, 0.9 * WIDTH) * (1 if int(x0 + y0) % 2 else -1)
    bend = max(rise, 14)
    return (f"M{x0:g},{y0:g} C{x0 + swing:g},{y0 - bend:g} {x1 + swing:g},{y1 + bend:g} "
            f"{x1:g},{y1:g}")  # fmt: skip


def _box(node: str, x: float, y: float) -> str:
    kind = node.partition(" ")[0]
    fill = {"head": "#eaf0f9", "kv": "#f3edf8", "group": "#f3edf8", "mlp": "#eef5f0"}.get(
        kind, "#f4f6f9")  # fmt: skip
    return (
        f'<g><rect x="{x - NODE / 2:g}" y="{y - HEIGHT / 2:g}" width="{NODE}" height="{HEIGHT}" '
        f'rx="{3 if kind == "mlp" else HEIGHT / 2:g}" fill="{fill}" stroke="{INK}" '
        f'stroke-width="0.8"/><text x="{x:g}" y="{y + 4:g}" text-anchor="middle">{escape(node)}'
        "</text></g>"
    )


def _layers(at: Mapping[str, tuple[float, float]], scores: "Scores", width: float) -> list[str]:
    """Return the names of the layers on the left, with a line below each."""
    last, rows = last_layer(scores), defaultdict[int, list[float]](list)
    for node, (_, y) in at.items():
        rows[place(node, last)[0]].append(y)
    return [
        f'<path d="M14,{max(y) + ROW / 2:g} H{width - 14:g}" stroke="{LINE}"/>'
        f'<text x="14" y="{(max(y) + min(y)) / 2 + 4:g}" fill="{QUIET}">layer {layer}</text>'
        for layer, y in rows.items()
        if 0 <= layer <= last
    ]


def _legend(drawn: Sequence[Edge], largest: float, height: float) -> list[str]:
    if not drawn:
        return [f'<text x="14" y="{height - 20:g}" fill="{QUIET}">no edge has a score</text>']
    y = height - 22
    shown = (("positive", 14, PLUS), ("negative", 112, MINUS))
    return [
        f'<path d="M{x},{y - 4:g} h26" stroke="{colour}" stroke-width="4"/>'
        f'<text x="{x + 32}" y="{y:g}">{sign}</text>'
        for sign, x, colour in shown
    ] + [
        f'<text x="214" y="{y:g}" fill="{QUIET}">{len(drawn)} edges, upwards; the widest is '
        f"{largest:.3g}</text>"
    ]


def last_layer(scores: "Scores") -> int:
    """Return the index of the last block that has a name."""
    found = (_PLACE.match(split(name)[0]) for names in scores.names for name in names)
    return max((int(met["layer"]) for met in found if met), default=-1)
