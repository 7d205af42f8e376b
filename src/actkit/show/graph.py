"""A circuit as a picture: edges between heads and MLPs, layer above layer."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from actkit.show.heat_map import framed
from actkit.show.style import GROUND, INK, LINE, MINUS, NODES, PLUS, QUIET

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


@dataclass(frozen=True)
class Circuit:
    """Edges between parts of a network, and what is written above them.

    Attributes:
        edges: Those that are drawn, strongest first.
        receivers: Names of all that an edge may enter: "head 3.5 q", "kv 3.1 k", "mlp 2", "logits".
        senders: Names of all that an edge may leave: "input", "head 3.5", "mlp 2".
        title: What is shown.
        subtitle: Where the scores come from, and their unit.
    """

    edges: Sequence[Edge]
    receivers: Sequence[str]
    senders: Sequence[str]
    title: str = ""
    subtitle: str = ""

    @property
    def last_layer(self) -> int:
        """Return the index of the last block that a name is of, -1 if there is none."""
        names = (*self.receivers, *self.senders)
        found = (_PLACE.match(split(name)[0]) for name in names)
        return max((int(met["layer"]) for met in found if met), default=-1)


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


def groups(receivers: Sequence[str], senders: Sequence[str]) -> dict[str, list[str]]:
    """Return the query heads that share each key-value head's keys and values, by their names.

    Example:
        >>> groups(["kv 0.0 k", "logits"], ["input", "head 0.0", "head 0.1"])
        {'kv 0.0': ['head 0.0', 'head 0.1']}
    """
    heads, shared = defaultdict[int, list[str]](list), defaultdict[int, list[str]](list)
    for names, pattern, found in (
        (senders, r"head (\d+)\.\d+$", heads),
        (dict.fromkeys(split(name)[0] for name in receivers), r"(?:kv|group) (\d+)\.\d+$", shared),
    ):
        for name in names:
            if met := re.match(pattern, name):
                found[int(met[1])].append(name)
    return {
        name: heads[layer][i * len(heads[layer]) // len(names) :][: len(heads[layer]) // len(names)]
        for layer, names in shared.items()
        for i, name in enumerate(names)
    }


def circuit_svg(circuit: Circuit) -> str:
    """Return a circuit as SVG: an edge's width is the size of its score, its colour the sign.

    Only nodes that an edge touches are drawn; time runs upwards. A dashed line joins a key-value
    head to those heads drawn that read with its keys and values.
    """
    drawn, last = circuit.edges, circuit.last_layer
    nodes = list(dict.fromkeys(n for e in drawn for n in (e.sender, e.receiver)))
    shared = groups(circuit.receivers, circuit.senders)
    shares = [(k, h) for k, own in shared.items() for h in own if {k, h} <= {*nodes}]
    at = _laid_out(nodes, [*((e.sender, e.receiver) for e in drawn), *shares], last)
    largest = max((abs(e.score) for e in drawn), default=1.0)
    width = max([520.0, *(x + NODE for x, _ in at.values())])
    height = max([_TOP + 40.0, *(y + HEIGHT + 46 for _, y in at.values())])
    lines = [
        f'<path d="{_path(at[a], at[b])}" fill="none" stroke="{QUIET}" stroke-width="1" '
        'stroke-dasharray="3 3"/>'
        for a, b in shares
    ]
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
        boxes.append(
            f'<text x="{x + PORTS[port] + 4:g}" y="{y + HEIGHT / 2 + 10:g}" '
            f'font-size="10" fill="{QUIET}">{port}</text>'
        )
    shapes = [*_layers(at, last, width), *lines, *boxes, *_legend(drawn, largest, height)]
    return framed(width, height, circuit.title, circuit.subtitle, shapes)


def _laid_out(
    nodes: Sequence[str], joined: Sequence[tuple[str, str]], last: int
) -> dict[str, tuple[float, float]]:
    """Return the centre of each node: rows by depth, in them near the nodes they are joined to."""
    rows = defaultdict[tuple[int, int], list[str]](list)
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
    return (
        f"M{x0:g},{y0:g} C{x0 + swing:g},{y0 - bend:g} {x1 + swing:g},{y1 + bend:g} {x1:g},{y1:g}"
    )


def _box(node: str, x: float, y: float) -> str:
    kind = node.partition(" ")[0]
    fill = NODES.get(kind, GROUND)
    return (
        f'<g><rect x="{x - NODE / 2:g}" y="{y - HEIGHT / 2:g}" width="{NODE}" height="{HEIGHT}" '
        f'rx="{3 if kind == "mlp" else HEIGHT / 2:g}" fill="{fill}" stroke="{INK}" '
        f'stroke-width="0.8"/><text x="{x:g}" y="{y + 4:g}" text-anchor="middle">{escape(node)}'
        "</text></g>"
    )


def _layers(at: Mapping[str, tuple[float, float]], last: int, width: float) -> list[str]:
    """Return the names of the layers on the left, with a line below each."""
    rows = defaultdict[int, list[float]](list)
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
