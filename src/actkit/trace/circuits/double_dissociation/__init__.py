"""Show that two tasks use different heads: remove either set, and only its own task suffers.

Shapes: B prompts, V variants, R random pairs, L layers, H heads, K head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit, set, swap
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace._base import Analysis
from actkit.trace._parts import Parts
from actkit.trace._task import Task, Trial, as_trial
from actkit.trace.circuits.double_dissociation._selective_neurons import selective_neurons

__all__ = ["Dissociation", "double_dissociation", "selective_neurons"]

Heads = tuple[tuple[int, int], ...]
HEADS = Parts("z", ("head",))


@dataclass(frozen=True, slots=True, eq=False)
class Dissociation:
    """Two sets of heads, and what is lost without each.

    Attributes:
        first: Heads, as (layer, head), of the first task alone.
        second: Heads of the second task alone.
        drops_22: Accuracy lost, share in [-1, 1]: row i without set i, column j in task j.
        null_R: Selectivities of random pairs of sets, each with as many heads of every layer.
        scores_2LH: Each head's score for both tasks, as a share of the gap.
        accuracies_2: Of the whole network.
    """

    first: Heads
    second: Heads
    drops_22: Tensor
    null_R: Tensor
    scores_2LH: Tensor
    accuracies_2: Tensor

    @property
    def selectivity(self) -> float:
        """Return (drop_AA - drop_AB) + (drop_BB - drop_BA), in [-4, 4]; 0 for one and the same."""
        return _selectivity(self.drops_22)

    @property
    def p_value(self) -> float:
        """Return the share of random sets at least as selective, this one counted among them."""
        reached = int((self.null_R >= self.selectivity).sum())
        return (1 + reached) / (1 + len(self.null_R))


@method(source="Fartale et al. 2025, arXiv:2510.03366", interface=Analysis)
def double_dissociation(
    model: Model,
    first: Task | Trial,
    second: Task | Trial,
    num_heads: int = 3,
    num_random: int = 200,
    seed: int = 0,
    batch: int | str = "auto",
) -> Dissociation:
    """Choose the heads of two tasks, remove each set, and measure both tasks.

    A head's score is the mean of two shares of the gap: what comes back when its clean
    activation is patched into the corrupt prompts, and what is lost when its mean takes its
    place. Heads that are among the best of both tasks are in neither set. As in the paper for
    patching, ablation and selectivity; the null of random sets with the same number of heads in
    every layer is added here.

    Args:
        model: The network.
        first: A task with answers, and with wrong answers if only these compete.
        second: Another one.
        num_heads: How many best heads of each task.
        num_random: Pairs of random sets; 0 for none.
        seed: Of the random sets.
        batch: Rows that run at once, as in `m.sweep`.

    Raises:
        InputError: A task has no answers, or there are fewer heads than asked.

    Example:
        >>> from actkit.worlds import reader
        >>> task = Task(torch.tensor([[3, 1], [5, 1]]), torch.tensor([[4, 1], [2, 1]]),
        ...             [3, 5], [4, 2])
        >>> same = double_dissociation(Model(reader()), task, task, num_heads=1, num_random=0)
        >>> same.first, same.selectivity
        ((), 0.0)
    """
    trials = [as_trial(model, task) for task in (first, second)]
    num_layers, num_each = HEADS.shape(model, 0)
    if not 1 <= num_heads <= num_layers * num_each:
        raise InputError(f"asked for {num_heads} of {num_layers * num_each} heads")
    means = _means(trials)
    scores_2LH = torch.stack([_scores(trial, means, batch) for trial in trials])
    best = [_best(scores_LH, num_heads) for scores_LH in scores_2LH]
    sets: list[Heads] = [
        tuple(head for head in own if head not in other) for own, other in (best, best[::-1])
    ]
    gen = torch.Generator().manual_seed(seed)
    pairs = [sets, *([_alike(s, num_each, gen) for s in sets] for _ in range(num_random))]
    variants = [[_removed(head, means) for head in one] for pair in pairs for one in pair]
    share_2V = torch.stack([_accuracies(trial, [[], *variants], batch) for trial in trials])
    drops_R22 = (share_2V[:, :1] - share_2V[:, 1:]).T.reshape(-1, 2, 2)
    null_R = torch.tensor([_selectivity(drops_22) for drops_22 in drops_R22[1:]])
    return Dissociation(sets[0], sets[1], drops_R22[0], null_R, scores_2LH, share_2V[:, 0])


def _selectivity(drops_22: Tensor) -> float:
    (aa, ab), (ba, bb) = drops_22.tolist()
    return float((aa - ab) + (bb - ba))


def _means(trials: Sequence[Trial]) -> dict[str, Tensor]:
    """Return at each site the (H, K) mean over all tokens of all prompts of both tasks."""
    names = [site.name for site in HEADS.sites(trials[0].model)]
    recs = [trial.record(side, names) for trial in trials for side in ("clean", "corrupt")]
    return {name: torch.cat([rec.flat(name)[0] for rec in recs]).mean(0) for name in names}


def _removed(head: tuple[int, int], means: dict[str, Tensor]) -> Edit:
    name = list(means)[head[0]]
    return set(name, means[name][head[1]], Where(heads=head[1]))


def _scores(trial: Trial, means: dict[str, Tensor], batch: int | str) -> Tensor:
    """Return (L, H) scores: the mean of what patching brings and of what ablation costs."""
    clean = trial.source("clean", list(means))
    parts = list(HEADS.each(trial.model, 0))
    patched = [[swap(part.site, clean, part.where)] for part in parts]
    removed = [[_removed((part.layer, part.head or 0), means)] for part in parts]
    gained = trial.recovery(trial.sweep(patched, "corrupt", batch), "corrupt")
    lost = trial.recovery(trial.sweep(removed, "clean", batch), "clean")
    return ((gained + lost) / 2).reshape(HEADS.shape(trial.model, 0))


def _best(scores_LH: Tensor, num: int) -> Heads:
    order = scores_LH.flatten().topk(num).indices.tolist()
    return tuple(divmod(i, scores_LH.shape[1]) for i in order)


def _alike(heads: Heads, num_each: int, gen: torch.Generator) -> Heads:
    """Draw as many different heads of each layer."""
    layers = [layer for layer, _ in heads]
    counts = {layer: layers.count(layer) for layer in layers}
    return tuple(
        (layer, int(head))
        for layer, count in counts.items()
        for head in torch.randperm(num_each, generator=gen)[:count]
    )


def _accuracies(trial: Trial, variants: Sequence[Sequence[Edit]], batch: int | str) -> Tensor:
    """Return the (V,) share of clean prompts that each edited network gets right."""
    if trial.plus is None:
        raise InputError(f"accuracy needs a task with answers, {trial.task.name} has none")

    def right(logits_nPV: Tensor) -> Tensor:
        last_nV = logits_nPV[:, -1]
        rest_n = last_nV.amax(1) if trial.minus is None else _largest(last_nV, trial.minus)
        own_n = _largest(last_nV, torch.as_tensor(trial.plus))
        wins_n = own_n >= rest_n if trial.minus is None else own_n > rest_n
        return wins_n.float()

    found_VB = trial.model.sweep(trial.clean, variants, right, trial.task.at, batch)
    return found_VB.mean(1).cpu()


def _largest(logits_nV: Tensor, ids_BA: Tensor) -> Tensor:
    """Return each row's largest logit among its ids; -1 is none."""
    ids_nA = ids_BA.to(logits_nV.device).repeat(len(logits_nV) // len(ids_BA), 1)
    return logits_nV.gather(1, ids_nA.clamp_min(0)).masked_fill(ids_nA < 0, -torch.inf).amax(1)
