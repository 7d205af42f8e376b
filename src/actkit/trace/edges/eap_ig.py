"""Edge attribution patching with gradients averaged on the way from corrupt to clean.

Shapes: R receivers, S senders.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import set as put
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.trace._edges import EdgeLocalizer, contracted, edge_effects
from actkit.trace._graph import Graph
from actkit.trace._task import Trial


@method(source="Hanna et al. 2024, arXiv:2403.17806, section 2.2")
@dataclass
class EAPIG(EdgeLocalizer):
    """Score each edge by (a_s^clean - a_s^corrupt) . mean_k dM/d(what r reads) at z_k.

    The gradients are those of m runs that enter block 0 with z_k = z' + k/m (z - z'), from the
    corrupt prompts' stream z' to the clean one's z, k = 1 to m; so an edge keeps its score where
    the metric is flat at the clean prompts. m steps cost m + 2 forward and m backward passes.
    As in the paper, with the sign turned: an edge that carries the metric to the clean prompts'
    is positive. Scores are in units of the metric, means over pairs.

    Args:
        split_qkv: Whether queries, keys and values of a head read apart.
        steps: m; with one step it is `eap`.

    Example:
        >>> import torch
        >>> from actkit.model import Model
        >>> from actkit.trace import Task
        >>> from actkit.worlds import reader
        >>> first = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])
        >>> EAPIG(steps=3)(Model(reader(at=(1, 1))), first).top(1)
        [('input -> head 1.1 v', 2.0)]
    """

    steps: int = 5

    def __post_init__(self) -> None:
        """Refuse a way without steps."""
        if self.steps < 1:
            raise InputError(f"steps must be at least 1, got {self.steps}")

    def _weighed(self, trial: Trial, graph: Graph) -> tuple[Tensor, dict[str, Any]]:
        clean = trial.record("clean", graph.sites)
        corrupt = trial.source("corrupt", graph.sites)
        total_RS = 0 * graph.exists_RS.float()
        z, other = (rec["resid_pre.0"] for rec in (clean, corrupt))
        for k in track(range(1, self.steps + 1), "integrating"):
            here = put("resid_pre.0", other + k / self.steps * (z - other))
            at, grads = edge_effects(trial, graph, [here])
            total_RS = total_RS + contracted(graph, clean, corrupt, at, grads).cpu()
        return total_RS / self.steps, {}
