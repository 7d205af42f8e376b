"""Networks whose activations are known to the last digit.

Shapes: B batch, T tokens, D width.
"""

import torch
from torch import Tensor, nn

from actkit.model import Model


class Times(nn.Module):
    """Multiplies by a number."""

    def __init__(self, factor: float) -> None:
        """Keep the factor."""
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return factor * x."""
        return self.factor * x


class Keep(nn.Module):
    """Moves the rows by an offset and keeps the first few of their dimensions."""

    def __init__(self, dimensions: int, offset: float) -> None:
        """Keep the number of dimensions and the offset."""
        super().__init__()
        self.dimensions, self.offset = dimensions, offset

    def forward(self, x: Tensor) -> Tensor:
        """Return x with its other dimensions at 0, moved."""
        return (
            torch.cat([x[..., : self.dimensions], 0 * x[..., self.dimensions :]], -1) + self.offset
        )


class Plant(nn.Module):
    """Writes one value at a sample, a position and a unit."""

    def __init__(self, value: float, place: tuple[int, int, int]) -> None:
        """Keep the value and the place."""
        super().__init__()
        self.value, self.place = value, place

    def forward(self, x: Tensor) -> Tensor:
        """Return a copy of x with the value."""
        x = x.clone()
        x[self.place] = self.value
        return x


class Chain(nn.Module):
    """Runs a list of blocks."""

    def __init__(self, *blocks: nn.Module) -> None:
        """Keep the blocks."""
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last block returns."""
        for block in self.blocks:
            x = block(x)
        return x


def chain(*blocks: nn.Module) -> Model:
    """Open a chain of blocks."""
    return Model(Chain(*blocks).eval(), name="planted")


def axes(width: int = 6, length: float = 2.0, samples: int = 20) -> Tensor:
    """Return (samples, 2 * width, width) rows along both ways of every axis, all of one length.

    Their mean is 0 and their covariance is the same in every direction.
    """
    one_DD = length * torch.eye(width)
    return torch.cat([one_DD, -one_DD]).expand(samples, -1, -1).clone()
