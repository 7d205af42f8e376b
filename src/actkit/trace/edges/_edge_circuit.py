"""Circuits of edges, such as those that a localizer scores highest.

Shapes: R receivers, S senders.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.trace._graph import Graph


@dataclass(frozen=True, eq=False)
class EdgeCircuit:
    """Some edges of a graph.

    Attributes:
        senders: Names of all S senders.
        receivers: Names of all R receivers.
        kept_RS: Which edges are in it.
    """

    senders: list[str]
    receivers: list[str]
    kept_RS: Tensor

    @property
    def num_edges(self) -> int:
        """Return the number of edges."""
        return int(self.kept_RS.sum())

    def __iter__(self) -> Iterator[str]:
        """Iterate over the edges' names, "head 0.1 -> kv 3.0 k"."""
        for receiver, sender in self.kept_RS.nonzero().tolist():
            yield f"{self.senders[sender]} -> {self.receivers[receiver]}"


def edge_circuit(
    graph: Graph,
    values_RS: Tensor,
    num: int | None = None,
    at_least: float | None = None,
    signed: bool = False,
) -> EdgeCircuit:
    """Return the edges of largest score, without those on no way from the input to the logits.

    Args:
        graph: The graph.
        values_RS: Scores; NaN where there is no edge.
        num: How many edges, before dead ends are taken out.
        at_least: Or the smallest size of a score.
        signed: Go by the score itself, not by its size; so ACDC's are meant.

    Raises:
        InputError: Neither or both of number and bound are given, or the scores do not fit.
    """
    if (num is None) == (at_least is None):
        raise InputError(f"a circuit needs either a number or a bound, got {num} and {at_least}")
    if values_RS.shape != graph.exists_RS.shape:
        raise InputError(
            f"scores must be of shape {tuple(graph.exists_RS.shape)}, got {tuple(values_RS.shape)}"
        )
    size = values_RS if signed else values_RS.abs()
    size = size.nan_to_num(-torch.inf).masked_fill(~graph.exists_RS, -torch.inf)
    if at_least is None:
        order = size.flatten().sort(descending=True, stable=True).indices[:num]
        kept = torch.zeros(size.numel(), dtype=torch.bool).index_fill(0, order, True)
        kept = kept.view_as(size) & graph.exists_RS
    else:
        kept = size >= at_least
    return EdgeCircuit(graph.senders, graph.receivers, without_dead_ends(graph, kept))


def without_dead_ends(graph: Graph, kept_RS: Tensor) -> Tensor:
    """Return the kept edges that lie on a way from the input to the logits."""
    reached = torch.zeros(len(graph.senders), dtype=torch.bool)
    reached[0] = True
    kept = kept_RS.clone()
    for receiver in range(len(graph.receivers)):
        kept[receiver] &= reached
        if kept[receiver].any():
            reached |= graph.feeds_RS[receiver]
    alive = graph.alive(kept)
    useful = torch.tensor([bool(alive[fed].any()) for fed in graph.feeds_RS])
    useful[-1] = True
    return kept & useful[:, None]
