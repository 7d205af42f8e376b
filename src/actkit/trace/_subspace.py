"""Patching along directions: its edits, its effect, and directions trained for it.

Shapes: B pairs, T tokens, D width, J directions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.core.edits.edit import Edit, add, project_out
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.recording import Recording
from actkit.trace._gradients import signed_gap, with_metric
from actkit.trace._task import Trial

RATE = 0.05
"""Of Adam, in training directions."""


@dataclass(frozen=True, eq=False)
class SubspaceEffect:
    """What a patch does to the metric.

    Attributes:
        effect: Share of the gap between corrupt and clean that comes back: 1 if the patched run
            answers as the clean one does.
        accuracy: Interchange accuracy, the share of pairs whose metric ends nearer to the clean
            run's than to the corrupt run's.
        values: The metric of each patched run, (B,).
    """

    effect: float
    accuracy: float
    values: Tensor


def orthonormal(directions: Tensor) -> Tensor:
    """Return an orthonormal basis of the span of (D,) or (J, D) directions, (J, D).

    Raises:
        InputError: They are not finite, or do not span J dimensions.
    """
    given: Tensor = torch.atleast_2d(directions)  # type: ignore[no-untyped-call]
    given = given.to(torch.promote_types(given.dtype, torch.float32))
    if not given.isfinite().all() or int(torch.linalg.matrix_rank(given.detach())) < len(given):
        raise InputError(
            "directions must be finite and linearly independent, "
            f"got shape {tuple(directions.shape)} of norms {given.detach().norm(dim=1).tolist()}"
        )
    return _rows(given)


def subspace_edits(
    site: str, source: Recording, basis_JD: Tensor, where: Where | None = None
) -> list[Edit]:
    """Return u <- u - V^T V u + V^T V u_source, as two edits that can be saved.

    Args:
        site: Where the subspace lies.
        source: The other run, which recorded the site.
        basis_JD: V, orthonormal rows.
        where: Which tokens are patched; all if None.
    """
    basis_JD = basis_JD.to(source[site].device)
    wide = torch.promote_types(source[site].dtype, basis_JD.dtype)
    put_in = source[site].to(wide) @ basis_JD.mT.to(wide) @ basis_JD.to(wide)
    return [project_out(site, basis_JD, where), add(site, put_in, where=where)]


def effects(trial: Trial, variants: list[list[Edit]]) -> list[SubspaceEffect]:
    """Return what each list of edits does to the corrupt runs."""
    swept = trial.sweep(variants)
    nearer = (swept - trial.clean_values).abs() < (swept - trial.corrupt_values).abs()
    shares = trial.recovery(swept).tolist(), nearer.float().mean(-1).tolist()
    return [SubspaceEffect(*told) for told in zip(*shares, swept, strict=True)]


def trained(
    trial: Trial, site: str, where: Where | None, num: int, steps: int, seed: int
) -> Tensor:
    """Return (J, D) orthonormal directions whose patch makes corrupt runs answer as clean ones.

    The rows of a free matrix are made orthonormal at every step, which keeps the search on the
    orthogonal group; the loss is the squared distance of the metrics in units of the gap.
    """
    source = trial.source("clean", [site])
    width = source[site].shape[-1]
    if not 1 <= num <= width:
        raise InputError(f"directions must be 1 to {width} at {site}, got {num}")
    gen = torch.Generator().manual_seed(seed)
    free = torch.randn(num, width, generator=gen).to(source[site].device).requires_grad_()
    gap = signed_gap(trial, "corrupt")
    adam = torch.optim.Adam([free], lr=RATE)
    for _ in track(range(steps), "training directions"):
        edits = subspace_edits(site, source, _rows(free), where)
        _, values = with_metric(trial, "corrupt", (), edits)
        loss = ((values - trial.clean_values) / gap).pow(2).mean()
        (free.grad,) = torch.autograd.grad(loss, [free])
        adam.step()
    return _rows(free.detach())


def _rows(free_JD: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(free_JD.mT).Q.mT
    return basis
