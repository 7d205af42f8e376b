"""Subnetwork probing: learn by gradient which parts the answer needs.

Shapes: B pairs, T tokens, L layers, H heads, K head width.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit, apply
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.trace._base import Localizer
from actkit.trace._gradients import with_metric
from actkit.trace._parts import Parts
from actkit.trace._task import Trial

LOW, HIGH, HEAT = -0.1, 1.1, 2 / 3
"""The hard-concrete distribution: stretched to (LOW, HIGH), at this temperature, then clamped."""


@method(source="Cao et al. 2021; with corrupt prompts Conmy et al. 2023, arXiv:2304.14997")
@dataclass
class SubnetworkProbing(Localizer):
    """Score each part by the probability that a learnt mask keeps it.

    A mask m in [0, 1] of each part lets m a + (1 - m) a' flow, with a' of the corrupt prompts. Its
    distribution is hard-concrete, and Adam minimises the mean of KL(clean run || masked run) plus
    `penalty` times the expected number of parts that are not closed. As Conmy et al. adapted it;
    Cao et al. mask weights and train a probe. The penalty is counted by part, so that it is the
    least number of nats that a part must save to be kept.

    Args:
        parts: What is masked: "heads", "mlps", "attns", "neurons", or `Parts` without positions.
        penalty: Price of a part (nats).
        steps: Of Adam, each one forward and one backward pass.
        rate: Adam's step size.
        seed: Of the masks that are drawn.

    Example:
        >>> from actkit.model import Model
        >>> from actkit.trace import Task
        >>> from actkit.worlds import reader
        >>> first = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])
        >>> SubnetworkProbing(steps=60)(Model(reader(at=(1, 1))), first).values.round()
        tensor([[0., 0., 0.],
                [0., 1., 0.]])
    """

    unit: ClassVar[str] = "probability of being kept"
    kinds: ClassVar[tuple[str, ...]] = ("heads",)
    parts: str | Parts = "heads"
    penalty: float = 0.01
    steps: int = 100
    rate: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse training without steps, and prices that are none."""
        if self.steps < 1 or not self.rate > 0 or not self.penalty >= 0:
            raise InputError(
                f"steps must be at least 1, the rate positive, the penalty at least 0, got "
                f"{self.steps}, {self.rate} and {self.penalty}"
            )

    def _score(self, trial: Trial, parts: Parts) -> Tensor:
        if "position" in parts.axes:
            raise InputError(f"masks are of parts without positions, got {parts}")
        names = [site.name for site in parts.sites(trial.model)]
        corrupt = trial.source("corrupt", names)
        against_clean = replace(trial.task, metric="KL").on(trial.model)
        gen = torch.Generator().manual_seed(self.seed)
        location = torch.full(parts.shape(trial.model, 0), 2.0, requires_grad=True)
        adam = torch.optim.Adam([location], self.rate)
        for _ in track(range(self.steps), "learning masks"):
            masks = hard_concrete(location, torch.rand(location.shape, generator=gen))
            edits = _masked(names, masks, [corrupt[name] for name in names], parts)
            _, divergence_B = with_metric(against_clean, "clean", (), edits)
            price = self.penalty * open_probability(location).sum()
            loss = divergence_B.mean().to(price) + price
            (location.grad,) = torch.autograd.grad(loss, location)
            adam.step()
        return open_probability(location.detach())


def hard_concrete(location: Tensor, uniform: Tensor) -> Tensor:
    """Return masks in [0, 1] for uniform draws: clamp of a stretched sigmoid."""
    uniform = uniform.clamp(1e-6, 1 - 1e-6)
    soft = ((uniform.logit() + location) / HEAT).sigmoid()
    return (LOW + (HIGH - LOW) * soft).clamp(0, 1)


def open_probability(location: Tensor) -> Tensor:
    """Return the probability that a mask is not zero."""
    return (location - HEAT * math.log(-LOW / HIGH)).sigmoid()


def _masked(
    names: Iterable[str], masks: Tensor, corrupt: Iterable[Tensor], parts: Parts
) -> list[Edit]:
    """Return edits that let m a + (1 - m) a' flow at each layer's site."""

    def mixed(mask: Tensor, other: Tensor, x: Tensor) -> Tensor:
        mask = mask[:, None] if parts.axes == ("head",) else mask
        return (other + mask * (x - other)).to(x.dtype)

    return [
        apply(name, partial(mixed, mask.to(other.device), other))
        for name, mask, other in zip(names, masks, corrupt, strict=True)
    ]
