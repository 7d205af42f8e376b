"""Automated circuit discovery: remove edges one by one, as long as the answer stays.

Shapes: V versions, R receivers, S senders, B pairs, P asked positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.maths.next_token import kl
from actkit.trace._edges import EdgeLocalizer
from actkit.trace._graph import Graph
from actkit.trace._task import Trial
from actkit.trace.edges.acdc._edge_runs import EdgeRuns


@method(source="Conmy et al. 2023, arXiv:2304.14997, algorithm 1")
@dataclass
class ACDC(EdgeLocalizer):
    """Score each edge by how much its removal harms, and remove it if that is below tau.

    From the logits back to the first block, each receiver's edges are tried from the latest sender
    to the earliest: the sender's part of what the receiver reads is replaced by its value on the
    corrupt prompts, and where the loss of the graph H grows by less than tau, the edge is gone for
    all that follows. A score is that growth; the circuit is the edges of `scores >= tau`, and
    `facts` holds its size and its loss.

    As in the paper, but quicker with the same decisions: a batch tries the next edges together,
    each as if all before it were removed, and is read up to the first that must stay; edges into
    a part from which no way leads to the logits cost nothing, and are removed without a run.

    Args:
        split_qkv: Whether queries, keys and values of a head read apart. Without, there are
            about four times fewer edges.
        tau: Least growth of the loss for which an edge stays; the paper sweeps 0.001 to 1.
        loss: "KL" of the clean run's next-token distribution to that of the graph (nats); or
            "metric", how far the task's number falls below that of the clean run. Of several
            pairs the mean.

    Example:
        >>> from actkit.model import Model
        >>> from actkit.trace import Task
        >>> from actkit.worlds import reader
        >>> first = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])
        >>> scores = ACDC(loss="metric")(Model(reader(at=(1, 1))), first)
        >>> scores.top(2)  # without either edge the logit difference of 1 becomes -1
        [('input -> head 1.1 v', 2.0), ('head 1.1 -> logits', 2.0)]
        >>> scores.facts["num_edges"]
        2
    """

    unit: ClassVar[str] = "growth of the loss"
    quick: ClassVar[bool] = False
    tau: float = 0.01
    loss: Literal["KL", "metric"] = "KL"

    def __post_init__(self) -> None:
        """Refuse a negative threshold and unknown losses."""
        if not self.tau >= 0:
            raise InputError(f"tau must be at least 0, got {self.tau}")
        if self.loss not in ("KL", "metric"):
            raise InputError(f"loss must be 'KL' or 'metric', got {self.loss!r}")

    def _weighed(self, trial: Trial, graph: Graph) -> tuple[Tensor, dict[str, Any]]:
        runs = EdgeRuns(graph, trial)
        of = divergence if self.loss == "KL" else shortfall
        growth_RS, kept_RS, loss = _prune(runs, lambda kept_VRS: of(runs, kept_VRS), self.tau)
        facts = {"tau": self.tau, "num_edges": int(kept_RS.sum()), "loss": loss}
        return growth_RS, facts


def divergence(runs: EdgeRuns, kept_VRS: Tensor) -> Tensor:
    """Return the mean KL divergence of the clean run to each graph's run (nats), (V,)."""
    wanted_BV = runs.trial.clean_logits[:, -1].float().log_softmax(-1)
    found = runs.logits(kept_VRS)[:, -1].float().log_softmax(-1)
    found_VBV = found.view(len(kept_VRS), *wanted_BV.shape)
    return kl(wanted_BV, found_VBV).mean(-1)


def shortfall(runs: EdgeRuns, kept_VRS: Tensor) -> Tensor:
    """Return how far each graph's mean metric is below that of the clean run, (V,)."""
    return runs.trial.clean_values.mean() - runs.metric(kept_VRS).mean(-1)


def _prune(
    runs: EdgeRuns, loss: Callable[[Tensor], Tensor], tau: float
) -> tuple[Tensor, Tensor, float]:
    """Return the growth at each edge and the kept edges, (R, S), and the loss of what is left."""
    graph = runs.graph
    kept_RS, growth_RS = graph.exists_RS.clone(), torch.zeros(graph.exists_RS.shape)
    now, ahead = float(loss(kept_RS[None])), 4
    for receiver in track(range(len(graph.receivers))[::-1], "pruning edges into each part"):
        left = graph.exists_RS[receiver].nonzero()[:, 0].flip(0).tolist()
        fed = graph.feeds_RS[receiver]
        if tau > 0 and fed.any() and not graph.alive(kept_RS)[fed].any():
            kept_RS[receiver], left = False, []
        while left:
            tried = left[: min(ahead, runs.at_once)]
            removed_VS = torch.zeros(len(tried), len(graph.senders)).bool()
            for version, sender in enumerate(tried):
                removed_VS[version:, sender] = True
            kept_VRS = kept_RS.repeat(len(tried), 1, 1)
            kept_VRS[:, receiver] &= ~removed_VS
            after = [now, *loss(kept_VRS).tolist()]
            grown = [b - a for a, b in pairwise(after)]
            good = next((i for i, g in enumerate(grown) if not g < tau), len(tried))
            judged = tried[: good + 1]
            growth_RS[receiver, judged] = torch.tensor(grown[: good + 1])
            kept_RS[receiver, judged[:good]] = False
            now, left = after[good], left[len(judged) :]
            ahead = 2 * ahead if good == len(tried) else max(2, 2 * good)
    return growth_RS, kept_RS, now
