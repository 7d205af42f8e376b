"""Affine maps of low rank, and the moments and matrix powers that they are made from.

Shapes: N rows, B batch, T tokens, D width, K components.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from actkit.core.edits.controller import StrengthOperation
from actkit.core.errors import InputError


@dataclass(frozen=True, eq=False)
class LowRankMap(StrengthOperation):
    """Move x by s ((x - center) read^T write + shift), with s the strength.

    Attributes:
        read: (K, D); what is read of x.
        write: (K, D); what is written for it.
        center: (D,).
        shift: (D,).
    """

    identifier: ClassVar[str] = "gaussian_ot.low_rank_map"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer._low_rank:LowRankMap",)
    read: Tensor
    write: Tensor
    center: Tensor
    shift: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return the moved x."""
        way = (x - self.center) @ self.read.mT @ self.write + self.shift
        return x + self.dose(x) * way


def moments(z_NK: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Return mean and shrunk covariance."""
    S_KK = torch.cov(z_NK.mT).reshape(z_NK.shape[1], -1)
    even_KK = torch.eye(len(S_KK)).to(S_KK) * S_KK.diagonal().mean()
    return z_NK.mean(0), (1 - shrinkage) * S_KK + shrinkage * even_KK


def power(S_KK: Tensor, exponent: float) -> Tensor:
    """Return a power of a symmetric matrix.

    Raises:
        InputError: It has no inverse, and the power is negative.
    """
    value_K, vector_KK = torch.linalg.eigh(S_KK)
    value_K = value_K.clamp_min(0)
    if exponent < 0 and (flat := int((value_K <= 1e-12 * value_K.amax()).sum())):
        raise InputError(
            f"the source must vary along all {len(value_K)} components, it does not along {flat}: "
            "take fewer, or a positive shrinkage"
        )
    found: Tensor = vector_KK * value_K**exponent @ vector_KK.mT
    return found
