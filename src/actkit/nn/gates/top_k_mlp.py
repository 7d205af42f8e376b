"""An MLP that keeps the k largest activations of each token.

Shapes: ... any leading axes, D width, F hidden width.
"""

from typing import final

import torch
from torch import Tensor, nn

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.nn._base import Layer


@method(source="Li et al. 2022, arXiv:2210.06313, Top-k Transformer")
@final
class TopKMLP(Layer):
    """Two maps and a nonlinearity of whose output only the k largest entries are left.

    As in the paper: entries are compared by value after the nonlinearity, so with a ReLU fewer
    than k are not zero where fewer are positive, and gradients flow through the kept ones alone.
    The second map then needs k / hidden of its multiplications; they are not left out here.

    Args:
        width: Width D of what is read and returned (>= 1).
        hidden: Number F of hidden units.
        k: How many of them a token keeps (1 to F).
        activation: The nonlinearity; ReLU if None.

    Attributes:
        up: The map before the nonlinearity.
        activation: The nonlinearity.
        down: The map that reads the kept activations.

    Raises:
        InputError: `width` is below 1, or k is not in 1 to F.

    Example:
        >>> mlp = TopKMLP(width=2, hidden=5, k=3, activation=nn.Identity())
        >>> mlp.kept(torch.tensor([[0.5, -1.0, 3.0, 2.0, -4.0]]))
        tensor([[0.5000, 0.0000, 3.0000, 2.0000, 0.0000]])
    """

    def __init__(
        self, width: int, hidden: int, k: int, activation: nn.Module | None = None
    ) -> None:
        """Draw weights as `nn.Linear` does."""
        super().__init__()
        if width < 1 or not 1 <= k <= hidden:
            raise InputError(
                f"width must be at least 1 and k in 1 to hidden, got {width=}, {hidden=}, {k=}"
            )
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = nn.ReLU() if activation is None else activation
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., D) of (..., D)."""
        output: Tensor = self.down(self.kept(self.activation(self.up(x))))
        return output

    def kept(self, hidden: Tensor) -> Tensor:
        """Return (..., F) activations of which the k largest of each token are left."""
        top = hidden.topk(self.k, dim=-1)
        return torch.zeros_like(hidden).scatter(-1, top.indices, top.values)

    def extra_repr(self) -> str:
        """Return k, for the printed network."""
        return f"k={self.k}"
