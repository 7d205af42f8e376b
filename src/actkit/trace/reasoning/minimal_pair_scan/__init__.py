"""Where a network marks a causal sentence, and which heads mind a cause that makes no sense.

Shapes: B pairs, L layers, H heads, T queries, S keys, V heads of all layers, R resamples.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import swap
from actkit.core.errors import InputError
from actkit.maths.statistics import interval, resampled_means
from actkit.model import Model
from actkit.trace._base import Analysis
from actkit.trace._parts import as_parts
from actkit.trace._scores import Scores
from actkit.trace._task import Task, TaskWarning, Trial, as_trial
from actkit.trace.reasoning.minimal_pair_scan._causal_pairs import causal_pairs


@dataclass(frozen=True, eq=False)
class MinimalPairScan:
    """What each head does with pairs of a valid sentence and its nonsensical twin.

    Attributes:
        delimiter_LH: Share of attention that the tokens after the connective pay to it, mean
            over tokens and valid sentences.
        patching: Share of the gap in the metric that each head alone brings back, denoising.
        low_LH: Lower end of its 95% bootstrap interval over pairs.
        high_LH: Upper end.
        difference_LH: Total variation distance, 0 to 1, between the attention of the valid and
            the nonsensical sentence, mean over tokens from the first that differs on.
        patched_VB: The metric of each pair with each head patched, in the order of the scores.
    """

    delimiter_LH: Tensor
    patching: Scores
    low_LH: Tensor
    high_LH: Tensor
    difference_LH: Tensor
    patched_VB: Tensor

    @property
    def delimiter_by_layer(self) -> Tensor:
        """Return the mean share of each layer's heads, (L,)."""
        return self.delimiter_LH.mean(-1)


@method(source="Lee et al. 2024, arXiv:2410.21353", interface=Analysis)
def minimal_pair_scan(
    model: Model,
    task: Task | Trial | Literal["because", "so"] = "because",
    connective: str | int | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> MinimalPairScan:
    """Scan all heads for the syntax and for the sense of a minimal pair.

    Syntax: how much attention goes to the word that joins cause and effect. Sense: what a head's
    output of the valid sentence, put into the nonsensical one, brings back of the metric,
    (m_patched - m_corrupt) / (m_clean - m_corrupt), the mean over pairs taken before the ratio;
    and how far its attention differs. As in the paper; the sentences are actkit's own.

    Args:
        model: The network.
        task: Valid sentences (clean) and nonsensical ones (corrupt); "because" or "so": the
            bundled eight pairs of that template.
        connective: The word between cause and effect, one token, or its id; of a bundled
            template it is known.
        num_resamples: Draws of the bootstrap.
        seed: Of the draws.

    Raises:
        InputError: The connective is missing, not in every sentence, or not one token; pairs
            differ in length.

    Warns:
        TaskWarning: The network does not prefer most of the valid sentences.

    Example:
        >>> from actkit.worlds import reader
        >>> cause = Task(torch.tensor([[3, 1, 2]]), torch.tensor([[4, 1, 2]]), [3], [4])
        >>> found = minimal_pair_scan(Model(reader(at=(1, 2))), cause, connective=1)
        >>> found.patching.top(1)
        [('layer 1, head 2', 1.0)]
    """
    if isinstance(task, str):
        task, connective = causal_pairs(task), connective or f" {task}"
    trial = as_trial(model, task)
    heads, names = as_parts("heads"), [site.name for site in model.sites("attn_probs.*")]
    at = _positions(trial, connective)
    _warn_of_chance(trial)
    clean, corrupt = trial.record("clean", names), trial.record("corrupt", names)
    z = trial.source("clean", [site.name for site in heads.sites(model)])
    patched_VB = trial.sweep([[swap(p.site, z, p.where)] for p in heads.each(model, 0)])
    shape = heads.shape(model, 0)

    def recovery(mean: Tensor, clean: Tensor, corrupt: Tensor) -> Tensor:
        return ((mean - corrupt) / (clean - corrupt)).reshape(*shape, *mean.shape[1:])

    means = [x.mean(-1) for x in (patched_VB, trial.clean_values, trial.corrupt_values)]
    draws = [
        resampled_means(x, num_resamples, seed)
        for x in (patched_VB, trial.clean_values, trial.corrupt_values)
    ]
    low, high = interval(recovery(*draws))
    scores = _scores(recovery(*means), trial)
    return MinimalPairScan(
        torch.stack([_to_connective(clean[n], trial, at) for n in names]),
        scores,
        low,
        high,
        torch.stack([_distance(clean[n], corrupt[n], trial) for n in names]),
        patched_VB,
    )


def _warn_of_chance(trial: Trial) -> None:
    """Warn where the network does not prefer most of the valid sentences."""
    better = trial.clean_values > trial.corrupt_values
    if not better.float().mean() > 0.5:
        warnings.warn(
            f"the valid sentence is preferred in {int(better.sum())} of {len(trial)} "
            "pairs only, maps of it mean little",
            TaskWarning,
            stacklevel=3,
        )


def _scores(recovery_LH: Tensor, trial: Trial) -> Scores:
    """Return the recovery of each head as scores."""
    labels = [[str(i) for i in range(n)] for n in recovery_LH.shape]
    values_LH, about = recovery_LH.float().cpu(), (trial.task.name, "share of the gap")
    return Scores(values_LH, labels, ("layer", "head"), "heads", "minimal_pair_scan", *about)


def _positions(trial: Trial, connective: str | int | None) -> Tensor:
    """Return the column of the connective in each valid sentence, (B,)."""
    if isinstance(connective, str):
        ids = trial.model.tokenizer(connective, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise InputError(f"the connective must be one token, got {connective!r} of {len(ids)}")
        connective = int(ids[0])
    if connective is None:
        raise InputError("sentences of your own need connective=, a word or a token id")
    tokens = torch.as_tensor(trial.clean.tokens)
    found_BT = (tokens == connective) & trial.valid("clean")
    at_B = found_BT.long().argmax(-1)
    if not found_BT.any(-1).all() or (at_B == tokens.shape[1] - 1).any():
        rows = (~found_BT.any(-1)).nonzero()[:, 0].tolist()
        raise InputError(
            f"every sentence needs the connective {connective} before its last token, "
            f"got none in rows {rows}"
        )
    return at_B


def _to_connective(probs_BHTS: Tensor, trial: Trial, at_B: Tensor) -> Tensor:
    """Return each head's mean attention to the connective, (H,)."""
    index = at_B[:, None, None, None].expand(*probs_BHTS.shape[:3], 1)
    paid_BHT = probs_BHTS.gather(-1, index)[..., 0]
    after_BT = torch.arange(paid_BHT.shape[-1], device=at_B.device) > at_B[:, None]
    share_BH = (paid_BHT * after_BT[:, None]).sum(-1) / after_BT.sum(-1, keepdim=True)
    return share_BH.mean(0).float().cpu()


def _distance(clean_BHTS: Tensor, corrupt_BHTS: Tensor, trial: Trial) -> Tensor:
    """Return each head's mean distance of attention from the first difference on, (H,)."""
    tokens = [torch.as_tensor(trial.batch(side).tokens) for side in ("clean", "corrupt")]
    later_BT = ((tokens[0] != tokens[1]).cumsum(-1) > 0)[:, None]
    distance_BHT = 0.5 * (clean_BHTS - corrupt_BHTS).abs().sum(-1)
    return ((distance_BHT * later_BT).sum(-1) / later_BT.sum(-1)).mean(0).float().cpu()
