"""Relevance patching: attribution patching whose gradients follow rules of relevance.

Shapes: B pairs, T tokens, D width, F features, R receivers, S senders.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace._base import Localizer
from actkit.trace._edges import EdgeLocalizer, contracted, edge_effects
from actkit.trace._gradients import first_order, sides, slopes
from actkit.trace._graph import Graph
from actkit.trace._parts import Parts
from actkit.trace._task import Task, Trial, as_trial
from actkit.trace.nodes.relp._relevance import Rule, as_rules, attention_rule, propagating

ALL = ("norm", "activation", "gate", "attention")


@method(source="Rezaei Jafari et al. 2025, arXiv:2508.21258")
@dataclass
class RelP(Localizer):
    """Score each part by (a_clean - a_corrupt) c, with c the relevance that the metric sends back.

    The coefficients c are gradients under local rules: norms divide by a constant, activations are
    constant factors phi(z) / z, the factors of a gated product share it, attention patterns are
    constants, linear maps keep their gradient. Without biases relevance is then conserved:
    the sum of a c over the stream is the metric at every layer. Two forward passes and one
    backward pass, as without the rules, which is attribution patching.
    Differs from the paper: scores are divided by the gap; queries and keys are cut off in place of
    the pattern, which is the same, works with every attention kernel and changes no value.
    `RelPEdges` scores edges, `feature_relevance` the features of a dictionary.

    Args:
        parts: As in `AttributionPatching`; queries, keys and scores of attention have no relevance.
        direction: "denoise" or "noise".
        rules: Of "norm", "activation", "gate", "attention"; or functions from the model to
            modules that stand in and edits (`Change`).

    Example:
        >>> import torch
        >>> from actkit.model import Model
        >>> from actkit.trace import Task
        >>> from actkit.worlds import reader
        >>> first = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])
        >>> RelP("heads")(Model(reader(at=(1, 1))), first).values
        tensor([[0., 0., 0.],
                [0., 1., 0.]])
    """

    unit: ClassVar[str] = "share of the gap"
    parts: str | Parts = "heads"
    direction: Literal["denoise", "noise"] = "denoise"
    rules: Sequence[str | Rule] = ALL

    def __post_init__(self) -> None:
        """Refuse unknown directions and rules."""
        sides(self.direction)
        as_rules(self.rules)

    def _score(self, trial: Trial, parts: Parts) -> list[Tensor]:
        if parts.point in ("q", "k") and attention_rule in as_rules(self.rules):
            raise InputError(f"attention patterns are constants to the AH-rule, got {parts.point}")
        names = [site.name for site in parts.sites(trial.model)]
        with propagating(trial.model, self.rules) as edits:
            found = first_order(trial, self.direction, names, edits)
        return [parts.summed(x) for x in found]


@dataclass
class RelPEdges(EdgeLocalizer):
    """Score each edge by (a_s^clean - a_s^corrupt) . c_r, with c_r the relevance that r reads.

    As `RelP` at the clean prompts, in units of the metric. What queries and keys read has no
    relevance under the AH-rule.

    Args:
        split_qkv: Whether queries, keys and values of a head read apart.
        rules: As in `RelP`.
    """

    rules: Sequence[str | Rule] = ALL

    def _weighed(self, trial: Trial, graph: Graph) -> tuple[Tensor, dict[str, Any]]:
        corrupt = trial.source("corrupt", graph.sites)
        constant = attention_rule in as_rules(self.rules)
        with propagating(trial.model, self.rules) as edits:
            ruled = Graph(trial.model, self.split_qkv)  # its receivers' norms follow the rules
            clean, grads = edge_effects(trial, ruled, edits)
            for port, grad in zip(ruled.ports, grads, strict=True):
                if constant and port.site.startswith(("q.", "k.")):
                    grad.zero_()
            return contracted(ruled, clean, corrupt, clean, grads), {}


def feature_relevance(
    model: Model,
    task: Task | Trial,
    site: str,
    encode: Callable[[Tensor], Tensor],
    decoder_FD: Tensor,
    direction: Literal["denoise", "noise"] = "denoise",
    rules: Sequence[str | Rule] = ALL,
) -> Tensor:
    """Score the features of a dictionary at one site, (f_clean - f_corrupt) (c . d_f).

    Args:
        model: The network.
        task: Pairs of prompts with a metric.
        site: What the dictionary reads.
        encode: From activations (B, T, D) to features (B, T, F).
        decoder_FD: The features' directions.
        direction: As in `RelP`.
        rules: As in `RelP`.

    Returns:
        (T, F) shares of the gap, means over pairs.

    Raises:
        InputError: Features and directions do not fit.
    """
    trial = as_trial(model, task)
    with propagating(model, rules) as edits:
        source, base, (c_BTD,) = slopes(trial, direction, [site], edits)
    with torch.no_grad():
        change_BTF = encode(source[site]) - encode(base[site].detach())
    if (change_BTF.shape[-1], c_BTD.shape[-1]) != tuple(decoder_FD.shape):
        raise InputError(
            f"directions must be (F, D) = ({change_BTF.shape[-1]}, {c_BTD.shape[-1]}), "
            f"got {tuple(decoder_FD.shape)}"
        )
    return (change_BTF * (c_BTD @ decoder_FD.mT)).mean(0)
