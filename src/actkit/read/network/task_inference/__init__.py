"""Which task a network takes a prompt for: its implicit posterior, from outputs and activations.

Shapes: B prompts, N points in a prompt, Q queries, D inputs, W width of a site.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import nan
from typing import Any

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.run.inputs import Call
from actkit.model import Model
from actkit.read._base import ModelStatistic
from actkit.read.network.task_inference._family_probe import FamilyProbe
from actkit.worlds.task_mixture import Prompts, TaskMixture, linear

__all__ = ["FamilyProbe", "Prompts", "TaskInferenceResult", "TaskMixture", "task_inference"]


@dataclass(frozen=True, slots=True, eq=False)
class TaskInferenceResult:
    """What a network and the exact Bayes predictor make of the same prompts.

    Attributes:
        implied_B: The network's share g of the discrete family, such that its answers are
            nearest to g w_disc + (1 - g) w_ridge; not limited to [0, 1], NaN where both agree.
        bayes_B: The exact posterior of the discrete family, in [0, 1].
        separation_B: Mean squared distance of the two families' answers: where it is small,
            `implied_B` is mostly the network's error.
        errors: Mean squared distance to the answers without noise, in squared units of y, of
            "model", "bayes", "ridge" and "discrete"; NaN where the answers are not known.
        acts_BQW: Activations at the last Q tokens of the site; None if no site was asked for.
    """

    implied_B: Tensor
    bayes_B: Tensor
    separation_B: Tensor
    errors: dict[str, float]
    acts_BQW: Tensor | None

    @property
    def correlation(self) -> float:
        """Return Pearson's correlation of implied and exact posterior over prompts.

        The implied one is limited to [0, 1] first; NaN with fewer than two usable prompts.
        """
        usable_B = self.implied_B.isfinite()
        if usable_B.sum() < 2:
            return nan
        pair_2B = torch.stack([self.implied_B.clamp(0, 1), self.bayes_B])[:, usable_B]
        return float(torch.corrcoef(pair_2B)[0, 1])

    def summary(self) -> dict[str, float]:
        """Return the numbers that fit one line of a report."""
        usable_B = self.implied_B[self.implied_B.isfinite()].clamp(0, 1)
        return {
            "implied": float(usable_B.mean()),
            "bayes": float(self.bayes_B.mean()),
            "correlation": self.correlation,
            **{f"error_{name}": value for name, value in self.errors.items()},
        }


@method(source="Kotha et al. 2023, arXiv:2309.10105, section 2", interface=ModelStatistic)
def task_inference(
    model: Model,
    prompts: Prompts,
    mixture: TaskMixture,
    site: str | None = None,
    encode: Callable[[Tensor, Tensor, Tensor], Any] = Call,
) -> TaskInferenceResult:
    """Read from a network's answers how much it takes each prompt for one of the known tasks.

    The Bayes predictor of the mixture answers x . (g w_disc + (1 - g) w_ridge); a network that
    answers p stands at g = <p - r, d - r> / |d - r|^2 between the answers d and r of the two
    families. Compare the same prompts before and after fine-tuning. As in the paper for the
    predictors; that it reads the network's own g, from answers and activations, is added here.

    Args:
        model: The network; it returns (B, Q) answers, or (B, T) with these at the last Q.
        prompts: B prompts of Q queries each.
        mixture: The distribution that the network was trained on.
        site: Also record the last Q tokens of this site, for a `FamilyProbe`.
        encode: Turns x (B, N, D), y (B, N) and queries (B, Q, D) into the network's inputs.

    Raises:
        InputError: The prompts do not fit the tasks, or the answers do not fit the prompts or
            are not finite.

    Example:
        >>> class Zero(torch.nn.Module):
        ...     def forward(self, x_BND, y_BN, query_BQD):
        ...         return 0 * query_BQD[..., 0]
        >>> one = torch.ones(1, 1, 1)  # the answers are d = 1 and r = 0.5
        >>> prompts, mixture = Prompts(one, one[0], one), TaskMixture(one[0])
        >>> task_inference(Model(Zero()), prompts, mixture).implied_B
        tensor([-1.], dtype=torch.float64)
    """
    width, own = prompts.x_BND.shape[2], mixture.tasks_KD.shape[1]
    if width != own:
        raise InputError(f"prompts and tasks must be of one width, got {width} and {own}")
    inputs = encode(prompts.x_BND, prompts.y_BN, prompts.query_BQD)
    rec = model.run(inputs, record=() if site is None else site, logits=True)
    num_queries = prompts.query_BQD.shape[1]
    answer_BQ = _answers(rec.logits, prompts)
    x_BND, y_BN, query_BQD = (x.double() for x in (prompts.x_BND, prompts.y_BN, prompts.query_BQD))
    disc_BQ = linear(query_BQD, mixture.discrete(x_BND, y_BN))
    ridge_BQ = linear(query_BQD, mixture.ridge(x_BND, y_BN))
    bayes_B = mixture.posterior(x_BND, y_BN)
    mixed_BQ = linear(query_BQD, mixture.weights(x_BND, y_BN))

    apart_BQ = disc_BQ - ridge_BQ
    implied_B = ((answer_BQ - ridge_BQ) * apart_BQ).sum(1) / apart_BQ.square().sum(1)

    answers = {"model": answer_BQ, "bayes": mixed_BQ, "ridge": ridge_BQ, "discrete": disc_BQ}
    target = nan if prompts.target_BQ is None else prompts.target_BQ
    errors = {name: float((a - target).square().mean()) for name, a in answers.items()}
    acts = None if site is None else rec[site][:, -num_queries:].cpu()
    return TaskInferenceResult(implied_B, bayes_B, apart_BQ.square().mean(1), errors, acts)


def _answers(output: Tensor, prompts: Prompts) -> Tensor:
    """Return the (B, Q) answers in float64."""
    batch, num_queries = prompts.query_BQD.shape[:2]
    output = output[..., 0] if output.dim() == 3 and output.shape[2] == 1 else output
    if output.dim() != 2 or len(output) != batch or output.shape[1] < num_queries:
        raise InputError(
            f"a network must answer {batch} prompts of {num_queries} queries, "
            f"got shape {tuple(output.shape)}"
        )
    answer_BQ = output[:, -num_queries:].to(prompts.x_BND.device, torch.float64)
    if num_nonfinite := int((~answer_BQ.isfinite()).sum()):
        raise InputError(f"answers must be finite, got {num_nonfinite} NaN or infinite")
    return answer_BQ
