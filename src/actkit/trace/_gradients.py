"""What gradient methods share: the difference of two runs, and the gradient of the metric at one.

Shapes: B pairs, T tokens, P asked positions, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from actkit.core.edits.edit import Edit
from actkit.core.errors import InputError
from actkit.core.run.recording import Recording
from actkit.trace._task import Trial

SIDES = {"denoise": ("clean", "corrupt"), "noise": ("corrupt", "clean")}
"""For each direction what is put in, and what it is put into."""


def sides(direction: str) -> tuple[str, str]:
    """Return which side is put in and which it is put into.

    Raises:
        InputError: The direction is neither "denoise" nor "noise".
    """
    if direction not in SIDES:
        raise InputError(f"direction must be one of {', '.join(SIDES)}, got {direction!r}")
    return SIDES[direction]


def with_metric(
    trial: Trial, side: str, names: Sequence[str], edits: Sequence[Edit] = ()
) -> tuple[Recording, Tensor]:
    """Record one side with its graph; return it and the metric of each pair, (B,)."""
    rec = trial.record(side, names, edits, logits=True, grad=True)
    return rec, trial.metric(_asked(trial, side, rec))


def product(source: Recording, base: Recording, name: str, gradient: Tensor) -> Tensor:
    """Return the first-order effect of every entry at a site, (a_source - a_base) dM/da."""
    difference = source[name] - base[name].detach()
    return difference.float() * gradient.float()


def slopes(
    trial: Trial, direction: str, names: Sequence[str], edits: Sequence[Edit] = ()
) -> tuple[Recording, Recording, list[Tensor]]:
    """Return both runs, and for each site the gradient of the metric as shares of the gap.

    Two forward passes and one backward pass.

    Args:
        trial: The task on a network.
        direction: "denoise" or "noise".
        names: The sites.
        edits: In place in the run whose gradient is taken.

    Returns:
        The run that is put in, the one that it is put into, and the gradients in the latter.
    """
    side, onto = sides(direction)
    source = trial.source(side, names)
    base, values = with_metric(trial, onto, names, edits)
    gradients = torch.autograd.grad(values.sum(), [base[n] for n in names])
    gap = signed_gap(trial, onto)
    return source, base, [gradient / gap for gradient in gradients]


def first_order(
    trial: Trial, direction: str, names: Sequence[str], edits: Sequence[Edit] = ()
) -> list[Tensor]:
    """Return for each site (a_source - a_base) dM/da as shares of the gap, (B, T, ...).

    The arguments are those of `slopes`.
    """
    source, base, gradients = slopes(trial, direction, names, edits)
    pairs = zip(names, gradients, strict=True)
    return [product(source, base, name, gradient) for name, gradient in pairs]


def signed_gap(trial: Trial, onto: str) -> float:
    """Return the mean metric of the other side less that of the side that is patched.

    Raises:
        InputError: Both sides have the same metric, so that there is no gap to share.
    """
    if trial.gap == 0:
        raise InputError(f"shares need a gap, but clean and corrupt give the same: {trial.report}")
    return trial.gap if onto == "corrupt" else -trial.gap


def _asked(trial: Trial, side: str, rec: Recording) -> Tensor:
    """Return the logits at the task's positions, (B, P, V)."""
    index_BP = trial.asked(side).to(rec.logits.device)
    return rec.logits[torch.arange(len(index_BP), device=index_BP.device)[:, None], index_BP]
