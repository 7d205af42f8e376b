"""Causal mediation analysis: what one component's activation does to two answers at once.

Shapes: B pairs, V variants, P asked positions, n rows of a batch (B again and again).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import swap
from actkit.core.errors import InputError
from actkit.maths.next_token import log_prob_of
from actkit.trace._base import Localizer
from actkit.trace._parts import Parts
from actkit.trace._scores import Scores
from actkit.trace._task import Trial


@method(source="Stolfo et al. 2023, arXiv:2305.15054, section 3")
@dataclass
class Mediation(Localizer):
    """Score each part by its indirect effect on the answers of both prompts.

    The clean prompt has the answer r' and the corrupt one, of other operands, the answer r. With
    P the corrupt run's probabilities and P* those after the clean activation of a part was put in,
    IE = ((P*(r') - P(r')) / P(r') + (P(r) - P*(r)) / P*(r)) / 2, and a part's score is the mean of
    log(IE + 1) over pairs. As in the paper.

    Where a task has answers and no wrong ones, both prompts have the same result, r = r' (the
    result-preserving variant): what carries the result alone has no effect then.

    Args:
        parts: What is patched; the paper has "mlp" and "attn" (layer x position).
        batch: Rows that run at once, as in `m.sweep`.

    Example:
        >>> import torch
        >>> from actkit.model import Model
        >>> from actkit.trace import Task
        >>> from actkit.worlds import reader
        >>> first = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])
        >>> Mediation("heads")(Model(reader(at=(1, 1))), first).values  # log(1 + (e-1 + e-1) / 2)
        tensor([[0., 0., 0.],
                [0., 1., 0.]])
    """

    unit: ClassVar[str] = "log(IE + 1)"
    parts: str | Parts = "heads"
    batch: int | str = "auto"

    def _score(self, trial: Trial, parts: Parts) -> Tensor:
        clean = trial.source("clean", [site.name for site in parts.sites(trial.model)])
        length = trial.length if "position" in parts.axes else 0
        each = parts.each(trial.model, length)
        variants = [[swap(part.site, clean, part.where)] for part in each]
        effect = _log_effect(trial)
        corrupt = trial.batch("corrupt")
        found = trial.model.sweep(corrupt, variants, effect, trial.task.at, self.batch)
        return found.mean(-1)


def relative_importance(scores: Scores | list[Scores], chosen: list[Tensor]) -> float:
    """Return the share that some parts have in the sum of all scores.

    RI(M) = sum_{m in M} log(IE_m + 1) / sum_m log(IE_m + 1), m over all parts of all scores.

    Args:
        scores: Of `Mediation`; several if the share is to be of several kinds of parts together.
        chosen: For each of the scores a bool mask of its parts that belong to M.

    Returns:
        A share; below 0 or above 1 only if scores are negative.

    Raises:
        InputError: Masks do not fit, or all scores are zero.

    Example:
        >>> import torch
        >>> three = Scores(torch.tensor([1.0, 2.0, 1.0]), [["0", "1", "2"]], ("layer",))
        >>> relative_importance(three, [torch.tensor([False, True, False])])
        0.5
    """
    several = [scores] if isinstance(scores, Scores) else scores
    shapes = [tuple(s.values.shape) for s in several], [tuple(c.shape) for c in chosen]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"each of the scores needs a mask of its shape, got {shapes[1]} for {shapes[0]}"
        )
    total = sum(float(s.values.double().sum()) for s in several)
    if not total:
        raise InputError("shares need scores that do not sum to zero")
    pairs = zip(several, chosen, strict=True)
    return sum(float(s.values.double()[c.bool()].sum()) for s, c in pairs) / total


def _log_effect(trial: Trial) -> Callable[[Tensor], Tensor]:
    """Return the function from logits (n, P, V) of patched corrupt runs to (n,) log(IE + 1)."""
    clean_B, corrupt_B = _results(trial)

    def log_probs(logits_nPV: Tensor, ids_B: Tensor) -> Tensor:
        log_p_nV = logits_nPV[:, -1].double().log_softmax(-1)
        ids = ids_B.to(log_p_nV.device).repeat(len(log_p_nV) // len(ids_B))
        return log_prob_of(log_p_nV, ids)

    before_clean, before_corrupt = (
        log_probs(trial.corrupt_logits, i) for i in (clean_B, corrupt_B)
    )

    def effect(logits_nPV: Tensor) -> Tensor:
        copies = len(logits_nPV) // len(trial)
        # as differences of logs, so that probabilities of 1e-40 keep their ratio
        gained = (log_probs(logits_nPV, clean_B) - before_clean.repeat(copies)).exp() - 1
        lost = (before_corrupt.repeat(copies) - log_probs(logits_nPV, corrupt_B)).exp() - 1
        return ((gained + lost) / 2).log1p()

    return effect


def _results(trial: Trial) -> tuple[Tensor, Tensor]:
    """Return the (B,) ids of the clean and the corrupt prompts' results."""
    if trial.plus is None:
        raise InputError("an indirect effect needs the answers of the clean prompts")
    other = trial.plus if trial.minus is None else trial.minus
    if trial.plus.shape[1] != 1 or other.shape[1] != 1:
        raise InputError(
            f"an indirect effect needs one result for each prompt, got "
            f"{trial.plus.shape[1]} answers and {other.shape[1]} wrong ones"
        )
    return trial.plus[:, 0], other[:, 0]
