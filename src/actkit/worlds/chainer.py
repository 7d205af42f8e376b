"""A network wired by hand to find paths in trees by chaining backwards from the goal.

Shapes: D width, K head width, N nodes, L layers.
"""

from itertools import pairwise

import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.model import Model
from actkit.worlds.wiring import Wiring, blank

SHARP = 40.0
"""Attention logit of what a head looks for, over what it does not."""


def backward_chainer(num_nodes: int = 16, layers: int = 5) -> Model:
    """Return a network of one head in each layer that finds paths by chaining backwards.

    Layer 0 copies each edge's parent to its child's token, and the goal to every token of the
    path. Layers 1 to L - 2 each go one edge up: a token that holds a node attends to the edge
    that leads there and takes its parent. The last layer attends to the edge that begins at the
    current node and leads to a node that was held. So goals are found up to L - 1 edges away;
    beyond, both children of the current node get the same logit.

    Args:
        num_nodes: Of the trees.
        layers: At least 2.

    Example:
        >>> from actkit.worlds import draw_trees
        >>> trees = draw_trees(2, num_nodes=8)
        >>> backward_chainer(8, layers=4).run(trees.tokens_BT, logits=True).logits.shape[0]
        2
    """
    if layers < 2 or num_nodes < 3:
        raise InputError(f"need 2 layers and 3 nodes at least, got {layers} and {num_nodes}")
    length = 3 * num_nodes + 1
    held = ["copied", *(f"step {k}" for k in range(1, layers - 1))]
    wires = blank(num_nodes + 2, length, layers, 1, **dict.fromkeys(held, num_nodes))
    node = torch.eye(num_nodes + 2, num_nodes)
    q, k = wires.map(position=SHARP * _to_copy(num_nodes)), wires.map(position=torch.eye(length))
    wires.head("copy", 0, q, k, wires.map(token=node), ("copied", torch.eye(num_nodes)))
    for layer, (before, now) in enumerate(pairwise(held), 1):
        _climb(wires, layer, before, now)
    _choose(wires, layers - 1, held)
    return Model(wires.net, name="backward chainer")


def _to_copy(num_nodes: int) -> Tensor:
    """Return which position each position copies: an edge's parent, the goal, or itself."""
    edges, length = 2 * (num_nodes - 1), 3 * num_nodes + 1
    source = torch.arange(length)
    source[1:edges:2] -= 1
    source[edges + 3 :] = edges + 1
    return torch.eye(length)[source]


def _climb(wires: Wiring, layer: int, before: str, now: str) -> None:
    """Go one edge up: the edge to the held node scores 2, any other 1, and the mark 1.5."""
    size = wires.slots[now].stop - wires.slots[now].start
    eye, wide = torch.eye(size), torch.eye(size, size + 1)
    bonus = torch.eye(size + 1)[size:]
    # the mark before the goal is met where nothing is held, or the root; it leads nowhere
    token = torch.cat([wide, 1.5 * bonus, 0 * bonus])
    q = wires.map(**{before: SHARP * wide}, position=SHARP * bonus.expand(3 * size + 1, -1))
    k = wires.map(token=token, position=_is_edge(size) * bonus)
    wires.head(f"climb {layer}", layer, q, k, wires.map(copied=eye), (now, eye))


def _choose(wires: Wiring, layer: int, held: list[str]) -> None:
    """Say the child: an edge from the current node scores 2 more, one to a held node 1 more."""
    words = wires.net.config.vocab_size
    size = words - 2
    columns = torch.eye(2 * size + 1)
    parent, child, bonus = columns[:size], columns[size : 2 * size], columns[-1:]
    marks, said = 0 * columns[:2], torch.eye(words)
    here = {"token": torch.cat([2 * parent, marks]), "position": bonus.expand(3 * size + 1, -1)}
    q = SHARP * wires.map(**here, **dict.fromkeys(held, child))
    token = torch.cat([child, marks])
    k = wires.map(copied=parent, token=token, position=_is_edge(size) * bonus)
    wires.head("choose", layer, q, k, wires.map(token=said), ("out", said))


def _is_edge(num_nodes: int) -> Tensor:
    """Return 1 at the tokens that name the children of edges, (T, 1)."""
    position = torch.arange(3 * num_nodes + 1)[:, None]
    return ((position % 2 == 1) & (position < 2 * (num_nodes - 1))).float()
