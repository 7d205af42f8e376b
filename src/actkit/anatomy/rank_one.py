"""Rank-one changes of linear maps.

Shapes: H inputs of a map, D outputs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from actkit.anatomy.linear_map import weight_of
from actkit.core.errors import InputError
from actkit.model import Model


@dataclass(frozen=True, eq=False)
class RankOne:
    """A rank-one change of a linear map, W' = W + left right^T.

    Attributes:
        path: The map's path.
        left_D: What is added for the key, v* - W k*.
        right_H: C^-1 k* / (k*^T C^-1 k*): how much of it, by the map's input.
        key_H: k*, which stands for the subject.
        losses: At each step of the search for v* (nats).
    """

    path: str
    left_D: Tensor
    right_H: Tensor
    key_H: Tensor
    losses: Sequence[float] = ()

    def module(self, model: Model) -> nn.Module:
        """Return a changed copy of the map."""
        new = deepcopy(model.module.get_submodule(self.path))
        weight_DH = weight_of(new)
        weight_DH += torch.outer(self.left_D, self.right_H).to(weight_DH)
        return new

    @contextmanager
    def applied(self, model: Model) -> Iterator[None]:
        """Let the changed map stand in for the network's own, which comes back afterwards."""
        with model.replaced({self.path: self.module(model)}):
            yield


def rank_one(
    weight_DH: Tensor, key_H: Tensor, value_D: Tensor, moment_HH: Tensor, ridge: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return (left_D, right_H) such that (W + left right^T) k = v and the rest moves least.

    Of all changes dW with (W + dW) k = v it has the smallest tr(dW C dW^T), the mean squared
    change of the output over the keys of which C is the second moment.

    Args:
        weight_DH: W.
        key_H: k.
        value_D: v.
        moment_HH: C.
        ridge: Added to C's diagonal, as a share of its mean.

    Raises:
        InputError: The key is zero, or C is not positive definite.

    Example:
        >>> import torch
        >>> C = torch.tensor([[1.0, 0.0], [0.0, 4.0]])  # the second unit is in use
        >>> rank_one(torch.zeros(1, 2), torch.ones(2), torch.ones(1), C)[1]
        tensor([0.8000, 0.2000], dtype=torch.float64)
    """
    key_H, moment_HH = key_H.double(), moment_HH.double()
    eye_HH = torch.eye(len(key_H), dtype=torch.float64, device=key_H.device)
    factor_HH, failed = torch.linalg.cholesky_ex(
        moment_HH + ridge * moment_HH.diagonal().mean() * eye_HH
    )
    if failed or not key_H.any():
        raise InputError(
            f"a rank-one edit needs a key that is not zero and a positive definite second moment, "
            f"got |key| {key_H.norm():.3g} and ridge {ridge}"
        )
    u_H = torch.cholesky_solve(key_H[:, None], factor_HH)[:, 0]
    return value_D.double() - weight_DH.double() @ key_H, u_H / (u_H @ key_H)
