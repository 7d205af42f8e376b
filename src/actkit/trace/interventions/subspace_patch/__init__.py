"""Patch along directions only, and test whether they are what they seem.

Shapes: B pairs, D width, J directions.
"""

from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace._base import Analysis
from actkit.trace._subspace import (
    SubspaceEffect,
    effects,
    orthonormal,
    subspace_edits,
    trained,
)
from actkit.trace._task import Task, Trial, as_trial
from actkit.trace.interventions.subspace_patch._illusion import (
    Illusion,
    illusion_test,
    rank_one_edit,
)

__all__ = [
    "Illusion",
    "SubspaceEffect",
    "das",
    "illusion_test",
    "rank_one_edit",
    "subspace_edits",
    "subspace_patch",
]


@method(source="Makelov et al. 2024, arXiv:2311.17030, sections 3 and 4", interface=Analysis)
def subspace_patch(
    model: Model, task: Task | Trial, site: str, directions: Tensor, where: Where | None = None
) -> SubspaceEffect:
    """Put what the clean run has along some directions into the corrupt run.

    u <- u_corrupt + V^T V (u_clean - u_corrupt). An effect alone does not show that the feature
    lies along V: `illusion_test` splits a direction into what the next map sees and does not see.
    As in the paper; the effect is counted as the share of the gap that comes back.

    Args:
        model: The network.
        task: Pairs of prompts with a metric.
        site: Where the directions lie.
        directions: (D,), or (J, D) that span J dimensions.
        where: Which tokens are patched; all if None.

    Raises:
        InputError: The directions do not fit the site, or are linearly dependent.

    Example:
        >>> import torch
        >>> from actkit.worlds import reader
        >>> first = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])
        >>> along = torch.eye(6)[3] - torch.eye(6)[4]
        >>> v = torch.nn.functional.pad(along, (0, 14))
        >>> found = subspace_patch(Model(reader()), first, "z.1.1", v)
        >>> round(found.effect, 4), found.accuracy
        (1.0, 1.0)
    """
    trial = as_trial(model, task)
    basis_JD = orthonormal(directions)
    source = trial.source("clean", [site])
    if basis_JD.shape[-1] != source[site].shape[-1]:
        raise InputError(
            f"directions must be as wide as {site}, {source[site].shape[-1]}, "
            f"got shape {tuple(directions.shape)}"
        )
    return effects(trial, [subspace_edits(site, source, basis_JD, where)])[0]


def das(
    model: Model,
    task: Task | Trial,
    site: str,
    where: Where | None = None,
    num: int = 1,
    steps: int = 60,
    seed: int = 0,
) -> Tensor:
    """Train directions whose patch makes the corrupt runs answer as the clean ones do.

    Distributed alignment search: gradient descent over orthonormal directions.

    Args:
        model: The network.
        task: Pairs of prompts with a metric; give both orders of a pair to train both ways.
        site: Where the directions lie.
        where: Which tokens are patched; all if None.
        num: How many directions.
        steps: Of Adam, each over all pairs.
        seed: Of the directions to begin with.

    Returns:
        (J, D) orthonormal rows.

    Raises:
        InputError: More directions than the site is wide, or none.
    """
    trial = as_trial(model, task)
    return trained(trial, site, where, num, steps, seed)
