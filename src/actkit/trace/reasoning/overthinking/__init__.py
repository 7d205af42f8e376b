"""Find where a network overthinks: late heads copy false labels over what it knew before.

Shapes: B prompts, T tokens, L layers, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit, scale, set
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace._base import Analysis
from actkit.trace.reasoning.overthinking._demonstrations import (
    Demonstrations,
    accuracies,
    layer_logits,
)

__all__ = [
    "Ablated",
    "Demonstrations",
    "Overthinking",
    "ablated",
    "critical_layer",
    "layer_logits",
    "overthinking",
]


@dataclass(frozen=True, slots=True, eq=False)
class Overthinking:
    """What each layer would answer, and which heads attend to false labels.

    Attributes:
        true_L: Accuracy after each block, demonstrations true; share in [0, 1].
        false_L: The same, demonstrations false.
        scores_LH: PM, each head's attention from the last token to false labels of the answer's
            class less that to true ones, mean over prompts.
    """

    true_L: Tensor
    false_L: Tensor
    scores_LH: Tensor

    @property
    def critical(self) -> int | None:
        """Return the layer from which on false labels cost accuracy; None if they never do."""
        return critical_layer(self.true_L, self.false_L)

    @property
    def gap(self) -> float:
        """Return how much more accurate the best layer is than the last one, labels false."""
        return float(self.false_L.max() - self.false_L[-1])

    @property
    def early_exit(self) -> float:
        """Return the accuracy with false labels of stopping before the critical layer."""
        layer = self.critical
        return float(self.false_L[-1 if layer is None else max(layer - 1, 0)])

    def heads(self, num: int, first_layer: int = 0) -> list[tuple[int, int]]:
        """Return the (layer, head) of largest score, from a layer on."""
        flat = self.scores_LH[first_layer:].flatten()
        if not 0 < num <= len(flat):
            raise InputError(f"asked for {num} of {len(flat)} heads from layer {first_layer} on")
        width = self.scores_LH.shape[1]
        return [(first_layer + int(i) // width, int(i) % width) for i in flat.topk(num).indices]


@dataclass(frozen=True, slots=True)
class Ablated:
    """A network without some heads, at its last layer.

    Attributes:
        true: Accuracy, demonstrations true.
        false: Accuracy, demonstrations false.
        recovered: The share of the gap between both that came back with false demonstrations;
            NaN if there was none.
        harm: What is lost with true demonstrations.
    """

    true: float
    false: float
    recovered: float
    harm: float


def critical_layer(
    true_L: Tensor, false_L: Tensor, gap: float = 0.05, share: float | None = None
) -> int | None:
    """Return the first layer from which on true less false accuracy stays above a bound.

    Args:
        true_L: Accuracies with true demonstrations.
        false_L: With false ones.
        gap: The bound.
        share: Instead, the bound as a share of the largest difference, above 0.

    Returns:
        The layer; None if the last layer is not above the bound.

    Raises:
        InputError: The curves differ in shape, are empty or not finite.

    Example:
        >>> true, false = torch.tensor([0.5, 0.9, 0.9, 0.9]), torch.tensor([0.4, 0.9, 0.6, 0.2])
        >>> critical_layer(true, false), critical_layer(true, false, share=0.5)
        (2, 3)
    """
    if true_L.shape != false_L.shape or true_L.dim() != 1 or not len(true_L):
        raise InputError(f"need two curves, got {tuple(true_L.shape)} and {tuple(false_L.shape)}")
    lead_L = true_L - false_L
    if not lead_L.isfinite().all():
        raise InputError(
            f"curves must be finite, got {int((~lead_L.isfinite()).sum())} that are not"
        )
    below_L = lead_L <= (gap if share is None else max(share * float(lead_L.max()), 0.0))
    first = int(below_L.nonzero().max()) + 1 if below_L.any() else 0
    return first if first < len(lead_L) else None


@method(source="Halawi et al. 2023, arXiv:2307.09476, sections 3 and 4", interface=Analysis)
def overthinking(model: Model, demos: Demonstrations, calibrate: bool = True) -> Overthinking:
    """Decode every layer under true and false demonstrations, and score heads by what they read.

    As in the paper: p_l = softmax(W_U norm(h_l)) over the labels, and a head's score is its mean
    attention to false labels of the answer's class less that to true ones. Differs in the
    calibration: each label's log-probability is centred over the prompts, which needs no
    threshold for each number of labels.

    Args:
        model: A decoder.
        demos: The prompts twice.
        calibrate: As above; else the largest label wins.

    Raises:
        InputError: Prompts do not pair up.
        SiteError: The network has no final norm, head or attention to read.

    Example:
        >>> from actkit.worlds import toy
        >>> tokens = torch.tensor([[2, 0, 3, 1, 2], [3, 1, 2, 0, 3]])
        >>> false = torch.tensor([[2, 1, 3, 0, 2], [3, 0, 2, 1, 3]])
        >>> demos = Demonstrations(tokens, false, torch.tensor([0, 1]), labels=[0, 1])
        >>> overthinking(Model(toy(4, norm=True)), demos).scores_LH.shape
        torch.Size([2, 2])
    """
    true, false, label_C, marks_BT = demos.encoded(model)
    true_L, false_L = (
        accuracies(layer_logits(model, side), label_C, demos.answers, calibrate)
        for side in (true, false)
    )
    names = [site.name for site in model.sites("attn_probs.*")]
    rec = model.run(false, record=names)
    scores = [(rec[name][:, :, -1] * marks_BT[:, None]).sum(-1).mean(0) for name in names]
    return Overthinking(true_L, false_L, torch.stack(scores))


def ablated(
    model: Model,
    demos: Demonstrations,
    seen: Overthinking,
    heads: Sequence[tuple[int, int]],
    mean: bool = False,
    calibrate: bool = True,
) -> Ablated:
    """Measure the last layer without some heads.

    Args:
        model: The network.
        demos: The prompts twice.
        seen: What `overthinking` said of both.
        heads: As (layer, head).
        mean: Put each head's mean output over the prompts and tokens of both sides for it; else
            zero.
        calibrate: As in `overthinking`.
    """
    true, false, label_C, _ = demos.encoded(model)
    edits = [_removed(model, (true, false), head, mean) for head in heads]

    def last(side: object) -> float:
        logits_1BV = layer_logits(model, side, edits, slice(-1, None))
        return float(accuracies(logits_1BV, label_C, demos.answers, calibrate))

    bare_true, bare_false = float(seen.true_L[-1]), float(seen.false_L[-1])
    now_true, now_false = last(true), last(false)
    lost = bare_true - bare_false
    recovered = (now_false - bare_false) / lost if lost else nan
    return Ablated(now_true, now_false, recovered, bare_true - now_true)


def _removed(model: Model, sides: Sequence[object], head: tuple[int, int], mean: bool) -> Edit:
    site, where = f"z.{head[0]}", Where(heads=head[1])
    if not mean:
        return scale(site, 0.0, where)
    rows = [model.run(side, record=site).flat(site)[0][:, head[1]] for side in sides]
    return set(site, torch.cat(rows).mean(0), where)
