"""What the localizers of edges share: their scores, and the first-order effect of every edge.

Shapes: R receivers, S senders, B pairs, T tokens, D width, n receivers of one place.
"""

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from actkit.core.edits.edit import Edit
from actkit.core.errors import InputError, SiteError
from actkit.core.run.recording import Recording
from actkit.model import Model
from actkit.trace._base import Localizer
from actkit.trace._gradients import with_metric
from actkit.trace._graph import Graph
from actkit.trace._parts import Parts
from actkit.trace._scores import Scores
from actkit.trace._task import Task, Trial

MOST = 64_000_000
"""Numbers that the senders' outputs may take at once; pairs are contracted in smaller groups."""


@dataclass
class EdgeLocalizer(Localizer):
    """A way to score edges: `Scores` with axes ("receiver", "sender"), NaN where there is no edge.

    Args:
        split_qkv: Whether queries, keys and values of a head read apart, as in `Graph`.
    """

    unit: ClassVar[str] = "metric"
    kinds: ClassVar[tuple[str, ...]] = ()
    parts: str | Parts = field(default="edges", init=False, repr=False)
    split_qkv: bool = True

    def __call__(self, model: Model, task: "Task | Trial") -> Scores:
        """Return the score of every edge; the network stays as it is.

        Args:
            model: The network.
            task: Pairs of prompts with a metric, or the trial that `task.on(model)` gave.

        Raises:
            InputError: The pairs, answers or positions do not fit the network.
            SiteError: The network's stream is no sum over its heads and MLPs.

        Warns:
            TaskWarning: The network does not do the task.
        """
        trial = self._trial(model, task)
        started = time.perf_counter()
        graph = Graph(model, self.split_qkv)
        values_RS, facts = self._weighed(trial, graph)
        values_RS = values_RS.float().cpu().masked_fill(~graph.exists_RS, torch.nan)
        return Scores(
            values_RS, [graph.receivers, graph.senders], ("receiver", "sender"), "edges",
            **self._told(trial), seconds=time.perf_counter() - started, facts=facts,
        )  # fmt: skip

    @abstractmethod
    def _weighed(self, trial: Trial, graph: Graph) -> tuple[Tensor, dict[str, Any]]:
        """Return the (R, S) scores, and facts about them."""

    def _score(self, trial: Trial, parts: Parts) -> Tensor:
        """Refuse: edges are no parts of one point."""
        raise SiteError(f"edges are scored on a graph, not by parts, got {parts}")


def edge_effects(
    trial: Trial, graph: Graph, edits: Sequence[Edit] = ()
) -> tuple[Recording, list[Tensor]]:
    """Run the clean prompts with their graph of gradients.

    Returns:
        What senders and receivers have there, and for each of the graph's ports the gradient of
        the mean metric by what is read there.
    """
    ends = [port.site for port in graph.ports]
    sites = dict.fromkeys([*graph.sites, *(port.stream for port in graph.ports), *ends])
    rec, values_B = with_metric(trial, "clean", list(sites), edits)
    return rec, list(torch.autograd.grad(values_B.mean(), [rec[site] for site in ends]))


def contracted(
    graph: Graph, clean: Recording, corrupt: Recording, at: Recording, grads: Sequence[Tensor]
) -> Tensor:
    """Return (a_s^clean - a_s^corrupt) . dM/d(what r reads of the stream), (R, S).

    Args:
        graph: The graph.
        clean: What the senders write on the clean prompts.
        corrupt: And on the corrupt ones.
        at: The run whose gradients these are.
        grads: For each port, as `edge_effects` returns them.
    """
    scores_RS = torch.zeros(graph.exists_RS.shape, device=grads[-1].device)
    pairs, tokens, width = clean["resid_pre.0"].shape
    size = max(1, MOST // (len(graph.senders) * tokens * width))
    for start in range(0, pairs, size):
        rows = slice(start, start + size)
        change = {s: clean[s].detach()[rows] - corrupt[s][rows] for s in graph.sites}
        change_SN = torch.cat([graph.written(s, x) for s, x in change.items()]).flatten(1)
        for port, grad in zip(graph.ports, grads, strict=True):
            pulled_nN = port.pulled(grad[rows], at[port.stream][rows]).flatten(1)
            before = change_SN[: port.senders]
            scores_RS[port.receivers, : port.senders] += (pulled_nN @ before.mT).float()
    return scores_RS


def roc_auc(values: Tensor, reference: Tensor) -> float:
    """Return the area under the ROC curve of the sizes of scores against a known circuit.

    Args:
        values: Scores of edges or nodes in any shape; NaN where there is none.
        reference: bool, which of them are in the circuit.

    Raises:
        InputError: Shapes differ, or all or none of the scored entries are in the circuit.

    Example:
        >>> roc_auc(torch.tensor([3.0, -2.0, 1.0, 0.0]), torch.tensor([1, 0, 1, 0]).bool())
        0.75
    """
    from sklearn.metrics import roc_auc_score

    if values.shape != reference.shape or reference.dtype != torch.bool:
        raise InputError(
            f"a reference must be bool of shape {tuple(values.shape)}, "
            f"got {reference.dtype} of shape {tuple(reference.shape)}"
        )
    known = ~values.isnan()
    inside = reference[known]
    if not inside.any() or inside.all():
        raise InputError(
            f"a ROC needs entries inside and outside the circuit, got {int(inside.sum())} inside "
            f"of {inside.numel()}"
        )
    return float(roc_auc_score(inside.numpy(), values[known].abs().numpy()))
