"""Edge attribution patching: the first-order effect of every edge, from one gradient.

Shapes: R receivers, S senders.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from actkit.catalog import method
from actkit.trace._edges import EdgeLocalizer, contracted, edge_effects
from actkit.trace._graph import Graph
from actkit.trace._task import Trial


@method(source="Syed et al. 2023, arXiv:2310.10348, eq. 2")
@dataclass
class EAP(EdgeLocalizer):
    """Score each edge by (a_s^clean - a_s^corrupt) . dM/d(what r reads), at the clean prompts.

    Two forward passes and one backward pass, besides those in which the task is checked. The
    gradient is taken by the stream as the receiver alone reads it, through its own map and the
    norm before. As in the paper, with the sign turned: an edge that carries the metric from the
    corrupt prompts to the clean ones is positive. Scores are in units of the metric, means over
    pairs. Where the metric has its optimum at the clean prompts, as "KL" has, all are zero.

    Args:
        split_qkv: Whether queries, keys and values of a head read apart.

    Example:
        >>> import torch
        >>> from actkit.model import Model
        >>> from actkit.trace import Task
        >>> from actkit.worlds import reader
        >>> first = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])
        >>> EAP()(Model(reader(at=(1, 1))), first).top(2)  # the logit difference is 1, then -1
        [('input -> head 1.1 v', 2.0), ('head 1.1 -> logits', 2.0)]
    """

    def _weighed(self, trial: Trial, graph: Graph) -> tuple[Tensor, dict[str, Any]]:
        corrupt = trial.source("corrupt", graph.sites)
        clean, grads = edge_effects(trial, graph)
        return contracted(graph, clean, corrupt, clean, grads), {}
