"""How parallel a binary variable is coded in all contexts: the parallelism score.

Shapes: N rows, D width, C conditions, K conditions on a side.
"""

from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.read._base import Statistic
from actkit.read.classes._dichotomy import by_condition

_MOST = 8  # conditions on a side: 8! = 40,320 pairings


@method(
    source="Bernardi et al. 2020, Cell 183, 954-967; used in arXiv:2401.13558", interface=Statistic
)
def parallelism_score(
    acts_ND: Tensor, condition_N: Any, dichotomy_C: Any, context_C: Any = None
) -> float:
    """Return the mean cosine between the coding directions of a dichotomy.

    A coding direction goes from the mean of a condition on one side to that of its partner on
    the other. As in the paper the score is the best over all ways to pair the two sides; with a
    context, conditions of the same context are partners.

    Args:
        acts_ND: (N, D) activations.
        condition_N: (N,) condition of each row, 0 to C - 1.
        dichotomy_C: (C,) side of each condition: two different values, equally often.
        context_C: (C,) partners share a value, which each side has once. Without it a side has
            at most 8 conditions.

    Returns:
        In [-1, 1]: 1 if all directions are parallel, near 0 for random means in many dimensions.

    Raises:
        InputError: Axes do not fit or rows are not finite; the sides are unequal, or have fewer
            than 2 or too many conditions; contexts do not pair them; or two partners have the
            same mean, so that there is no direction between them.

    Example:
        >>> square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [5.0, 0.0], [5.0, 1.0]])
        >>> round(parallelism_score(square, [0, 1, 2, 3], [0, 0, 1, 1]), 6)
        1.0
    """
    groups, one, two = by_condition(acts_ND, condition_N, dichotomy_C)
    if len(one) != len(two):
        raise InputError(f"both sides need as many conditions, got {len(one)} and {len(two)}")
    means = torch.stack([rows.mean(0) for rows in groups])
    pairings = _all_pairings(len(one)) if context_C is None else _paired(one, two, context_C)
    step_KKD = means[two][None] - means[one][:, None]
    norm_KK = step_KKD.norm(dim=2)
    unit_KKD = step_KKD / norm_KK[:, :, None]
    cosines = unit_KKD.flatten(0, 1) @ unit_KKD.flatten(0, 1).T
    best, left_K = -torch.inf, torch.arange(len(one))
    for right_PK in torch.split(pairings, 1024):
        if not (norm_KK[left_K, right_PK] > 0).all():
            raise InputError("conditions that are paired must have different means")
        pair_PK = left_K * len(one) + right_PK
        total_P = cosines[pair_PK[:, :, None], pair_PK[:, None]].sum((1, 2))
        best = max(best, float(total_P.max()))
    return (best - len(one)) / (len(one) * (len(one) - 1))  # without each direction with itself


def _all_pairings(num_pairs: int) -> Tensor:
    """Return every order of the second side, (P, K)."""
    if num_pairs > _MOST:
        raise InputError(
            f"without a context a side has at most {_MOST} conditions, got {num_pairs}"
        )
    return torch.tensor(list(permutations(range(num_pairs))))


def _paired(one: list[int], two: list[int], context_C: Any) -> Tensor:
    """Return the order of the second side in which partners share a context, (1, K)."""
    context = torch.as_tensor(context_C).tolist()
    if len(context) != len(one) + len(two):
        raise InputError(f"need a context for {len(one) + len(two)} conditions, got {len(context)}")
    sides = [[context[c] for c in side] for side in (one, two)]
    if len(set(sides[0])) < len(one) or sorted(sides[0]) != sorted(sides[1]):
        raise InputError(f"each side must have every context once, got {sides[0]} and {sides[1]}")
    return torch.tensor([[sides[1].index(value) for value in sides[0]]])
