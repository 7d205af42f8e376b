"""Over training, whether a network answers from its context or from its weights.

Shapes: S checkpoints, B sequences, T tokens, H heads, V vocabulary.
"""

from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError, SiteError
from actkit.core.progress import track
from actkit.maths.statistics import spearman
from actkit.model import Model
from actkit.opening.checkpoints import Checkpoints
from actkit.read._base import TrainingStatistic
from actkit.read.training.strategy_tracker._curve import AccuracyCurve
from actkit.worlds.bursty import BurstyTask, Probe

__all__ = ["AccuracyCurve", "BurstyTask", "Probe", "StrategyResult", "strategy_tracker"]


@dataclass(frozen=True, slots=True, eq=False)
class StrategyResult:
    """What a network does with its context and its weights over training.

    Attributes:
        in_context: The probe that only copying from the context solves.
        in_weights: The probe that only memory solves.
        induction_SH: For each `attn_probs` site the (S, H) mean attention, from the last token
            of the in-context probe, to the labels to copy minus that to the other labels, in
            [-1, 1]; empty where attention cannot be read, or the probe does not say what to copy.
    """

    in_context: AccuracyCurve
    in_weights: AccuracyCurve
    induction_SH: dict[str, Tensor]

    @property
    def competition(self) -> float:
        """Return Spearman's correlation of both accuracies from the in-context peak on.

        -1 if answers from the context give way steadily to answers from the weights; NaN with
        fewer than three checkpoints there, or if one of the two does not change.
        """
        start = self.in_context.accuracy.index(self.in_context.peak)
        late = [c.accuracy[start:] for c in (self.in_context, self.in_weights)]
        if any(len(a) < 3 or len(set(a)) == 1 for a in late):
            return nan
        return spearman(*late)

    def summary(self) -> dict[str, float]:
        """Return the numbers that fit one line of a report; NaN for an onset that never was."""
        found: dict[str, float] = {}
        for name in ("in_context", "in_weights"):
            curve: AccuracyCurve = getattr(self, name)
            found |= {
                f"{name}_onset": nan if curve.onset is None else curve.onset,
                f"{name}_peak": curve.peak,
                f"{name}_peak_step": curve.peak_step,
                f"{name}_final": curve.accuracy[-1],
                f"{name}_transience": curve.transience,
            }
        best = [float(score_SH.max()) for score_SH in self.induction_SH.values()]
        return {**found, "competition": self.competition, "induction": max(best, default=nan)}


@method(source="Singh et al. 2023, arXiv:2311.08360, figure 2", interface=TrainingStatistic)
def strategy_tracker(
    checkpoints: Checkpoints, in_context: Probe, in_weights: Probe
) -> StrategyResult:
    """Measure at each checkpoint the accuracy of copying and of memory, and each head's part.

    A network takes its answer from the largest of the logits at the last token among the
    probe's choices. `BurstyTask` makes the sequences of the paper, for networks that take token
    ids; any other network is tracked with probes of its own. As in the paper, but that the
    in-context probe of `BurstyTask` shows classes that training never shows (the paper's shows
    trained ones: `held_out=False`), and that heads are tracked too.

    Args:
        checkpoints: The networks, in the order of training.
        in_context: Questions that only copying from the context solves.
        in_weights: Questions that only memory solves.

    Raises:
        InputError: The logits do not fit the probe, or are not finite.

    Example:
        >>> class Guess(torch.nn.Module):
        ...     def forward(self, token_BT):
        ...         return torch.nn.functional.one_hot(token_BT * 0, 10).float()
        >>> probe = Probe(torch.tensor([[7, 8], [8, 7]]), torch.tensor([0, 1]), choices=(0, 1))
        >>> strategy_tracker(Checkpoints({50: Guess()}), probe, probe).in_weights.accuracy
        (0.5,)
    """
    probes = (in_context, in_weights)
    steps, accuracies, heads = zip(
        *(
            (c.step, [_accuracy(c.model, p) for p in probes], _induction(c.model, in_context))
            for c in track(checkpoints, "checkpoints")
        ),
        strict=True,
    )
    context, weights = (
        AccuracyCurve(steps, accuracy, p.chance, len(p.answer_B))
        for p, accuracy in zip(probes, zip(*accuracies, strict=True), strict=True)
    )
    induction_SH = {site: torch.stack([scores[site] for scores in heads]) for site in heads[0]}
    return StrategyResult(context, weights, induction_SH)


def _accuracy(model: Model, probe: Probe) -> float:
    logits = model.run(probe.inputs, logits=True).logits
    last_BV = logits[:, -1] if logits.dim() == 3 else logits
    num, most = len(probe.answer_B), max(probe.choices)
    if last_BV.dim() != 2 or len(last_BV) != num or last_BV.shape[1] <= most:
        raise InputError(
            f"logits must answer {num} questions with entries up to {most}, "
            f"got shape {tuple(logits.shape)}"
        )
    chosen_BC = last_BV[:, list(probe.choices)].cpu()
    if num_nonfinite := int((~chosen_BC.isfinite()).any(1).sum()):
        raise InputError(f"logits must be finite, got {num_nonfinite} of {num} rows that are not")
    picked_B = torch.tensor(probe.choices)[chosen_BC.argmax(1)]
    return float((picked_B == probe.answer_B.cpu()).double().mean())


def _induction(model: Model, probe: Probe) -> dict[str, Tensor]:
    """Return for each site the (H,) score of each head."""
    if probe.copy_BT is None:
        return {}
    try:
        names = [site.name for site in model.sites("attn_probs.*")]
    except SiteError:  # this network's attention cannot be read, or it has none
        return {}
    rec = model.run(probe.inputs, record=names)
    copy_B1T = probe.copy_BT[:, None].cpu().double()
    return {n: (rec[n][:, :, -1].cpu().double() * copy_B1T).sum(-1).mean(0) for n in names}
