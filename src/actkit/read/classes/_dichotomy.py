"""Conditions, and the two sides on which a binary label puts them.

Shapes: N rows, D width, C conditions.
"""

import torch
from torch import Tensor

from actkit.core.errors import InputError


def by_condition(
    acts_ND: Tensor, condition_N: Tensor, dichotomy_C: Tensor
) -> tuple[list[Tensor], list[int], list[int]]:
    """Return the rows of each condition as float64, and the conditions on both sides.

    Raises:
        InputError: Axes do not fit, a row is not finite, a condition has no row or no side, or
            one side has fewer than 2 conditions.
    """
    condition_N, dichotomy_C = torch.as_tensor(condition_N), torch.as_tensor(dichotomy_C)
    if acts_ND.dim() != 2 or condition_N.shape != acts_ND.shape[:1]:
        raise InputError(
            f"activations must be (N, D) with one condition each, got shapes "
            f"{tuple(acts_ND.shape)} and {tuple(condition_N.shape)}"
        )
    acts_ND = acts_ND.detach().cpu().double()
    if bad := len(acts_ND) - int(acts_ND.isfinite().all(1).sum()):
        raise InputError(f"activations must be finite, {bad} rows hold NaN or infinity")
    condition_N, dichotomy_C = condition_N.cpu(), dichotomy_C.cpu()
    groups = [acts_ND[condition_N == c] for c in range(len(dichotomy_C))]
    known = (condition_N >= 0) & (condition_N < len(dichotomy_C))
    if not known.all() or not all(map(len, groups)):
        raise InputError(
            f"conditions must be numbered 0 to {len(dichotomy_C) - 1}, as the dichotomy names "
            f"them, with a row each, got {sorted(set(condition_N.tolist()))}"
        )
    first, *others = sorted(set(dichotomy_C.tolist())) or [None]
    one = [c for c, side in enumerate(dichotomy_C.tolist()) if side == first]
    two = [c for c in range(len(dichotomy_C)) if c not in one]
    if len(others) != 1 or min(len(one), len(two)) < 2:
        raise InputError(
            f"a dichotomy needs two sides of at least 2 conditions, got {dichotomy_C.tolist()}"
        )
    return groups, one, two
