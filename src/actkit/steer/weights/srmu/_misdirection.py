"""What unlearning by misdirection asks of states, and which of their coordinates it means.

Shapes: N tokens, D width.
"""

import torch
from torch import Tensor

from actkit.core.errors import InputError


def misdirection_loss(
    acts_ND: Tensor, frozen_ND: Tensor, target_D: Tensor, importance_D: Tensor
) -> Tensor:
    """Return what pulls states to a target on important coordinates, and holds the others.

    mean over tokens of |m (h - t)|^2 + |(1 - m) (h - h_frozen)|^2; with m = 1 this is the forget
    loss of RMU.

    Args:
        acts_ND: States of what is to be forgotten.
        frozen_ND: The same before training.
        target_D: Where to.
        importance_D: m, in [0, 1].

    Example:
        >>> h, frozen = torch.tensor([[3.0, 3.0]]), torch.tensor([[1.0, 1.0]])
        >>> misdirection_loss(h, frozen, torch.zeros(2), torch.tensor([1.0, 0.0]))
        tensor(13.)
    """
    misdirected_ND = importance_D * (acts_ND - target_D)
    held_ND = (1 - importance_D) * (acts_ND - frozen_ND)
    return (misdirected_ND.square() + held_ND.square()).sum(-1).mean()


def importance(forget_D: Tensor, retain_D: Tensor) -> Tensor:
    """Return by how much coordinates are more active in what is to be forgotten, (D,) in [0, 1].

    F / R - 1 of the mean squares, cut at 0 and at 1, as a share of the largest.

    Args:
        forget_D: Mean squares of the states of what is to be forgotten.
        retain_D: The same of what is kept.

    Raises:
        InputError: No coordinate is more active, or one is not finite.

    Example:
        >>> importance(torch.tensor([3.0, 1.5, 1.0, 0.0]), torch.tensor([0.0, 1.0, 1.0, 2.0]))
        tensor([1.0000, 0.5000, 0.0000, 0.0000])
    """
    excess_D = ((forget_D - retain_D) / retain_D.clamp_min(1e-12)).clamp(0, 1)
    if not (excess_D.isfinite().all() and excess_D.max() > 0):
        raise InputError(
            "what is to be forgotten must be more active in a coordinate than what is retained, "
            f"got a largest excess of {excess_D.max():g} in shape {tuple(excess_D.shape)}"
        )
    return excess_D / excess_D.max()


def away(forget_ND: Tensor, retain_ND: Tensor, rank: int) -> Tensor:
    """Return the unit direction away from the forget mean, orthogonal to what is retained.

    Args:
        forget_ND: States of what is to be forgotten.
        retain_ND: States of what is kept.
        rank: Of the retain states' leading subspace (uncentred, so 1 is close to their mean).

    Raises:
        InputError: The subspace is as large as the width, or holds the forget mean.
    """
    basis_RD = torch.linalg.svd(retain_ND.double(), full_matrices=False).Vh[:rank]
    mean_D = forget_ND.double().mean(0)
    rest_D = mean_D - basis_RD.T @ (basis_RD @ mean_D)
    if not 1 <= rank < len(mean_D) or rest_D.norm() <= 1e-6 * mean_D.norm():
        raise InputError(
            f"the retain subspace must have a rank of 1 to {len(mean_D) - 1} and leave a part of "
            f"the forget mean, got rank {rank} and a rest of {rest_D.norm():.3g}"
        )
    away_D: Tensor = (-rest_D / rest_D.norm()).to(forget_ND)
    return away_D
