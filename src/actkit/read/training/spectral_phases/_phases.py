"""Phases of a training, from how RankMe and alpha move.

Shapes: C checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor

from actkit.core.errors import InputError

Name = Literal["warm-up", "entropy-seeking", "compression-seeking", "falling", "steady"]


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training in which RankMe goes one way.

    Attributes:
        name: "warm-up" falls from the start; "entropy-seeking" rises; "compression-seeking"
            falls later while alpha rises, "falling" while it does not; "steady" does neither.
        first: The step at which it starts.
        last: The step at which it ends.
        change: RankMe at the end / RankMe at the start - 1.
    """

    name: Name
    first: int
    last: int
    change: float


def phases_of(
    steps: Sequence[int], rankme_C: Tensor, alpha_C: Tensor, min_change: float = 0.02
) -> tuple[Phase, ...]:
    """Return the phases of given series, as `spectral_phases` does.

    Raises:
        InputError: The lengths differ or are below 2, RankMe is not positive and finite, or
            `min_change` is not above 0.

    Example:
        >>> import torch
        >>> ranks_C, alpha_C = torch.tensor([9.0, 5.0, 8.0, 7.0]), torch.tensor([1.0, 2, 1, 2])
        >>> [phase.name for phase in phases_of([0, 1, 2, 4], ranks_C, alpha_C)]
        ['warm-up', 'entropy-seeking', 'compression-seeking']
    """
    ranks = rankme_C.tolist()
    if not len(steps) == len(ranks) == len(alpha_C) >= 2 or min_change <= 0:
        raise InputError(
            "need series of one length, at least 2, and min_change above 0, got "
            f"{len(steps)}, {len(ranks)}, {len(alpha_C)} and {min_change}"
        )
    if not (rankme_C.isfinite() & (rankme_C > 0)).all():
        raise InputError(f"RankMe must be positive and finite, got {ranks}")
    phases = []
    for i, j in pairwise(_turns(ranks, min_change)):
        change, decay = ranks[j] / ranks[i] - 1, float(alpha_C[j] - alpha_C[i])
        moved = any(abs(rank / ranks[i] - 1) > min_change for rank in ranks[i : j + 1])
        name = _name(change, decay, i == 0) if moved else "steady"
        phases.append(Phase(name, steps[i], steps[j], change))
    return tuple(phases)


def _name(change: float, decay: float, first: bool) -> Name:
    if change > 0:
        return "entropy-seeking"
    if first:
        return "warm-up"
    return "compression-seeking" if decay > 0 else "falling"


def _turns(ranks: list[float], min_change: float) -> list[int]:
    """Return the indices of the start, of each extreme left by `min_change`, and of the end."""
    turns, extreme, rising = [0], 0, None
    for i, rank in enumerate(ranks):
        change = rank / ranks[extreme] - 1
        if rising is not None and (change >= 0) == rising:
            extreme = i
        elif abs(change) > min_change:
            if rising is not None:
                turns.append(extreme)
            extreme, rising = i, change > 0
    return [*turns, len(ranks) - 1]
