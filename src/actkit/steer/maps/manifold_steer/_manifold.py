"""Curves through concepts, and moving along them.

Shapes: N points, C values of a concept, K components, P pieces of a curve, D width, S places.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from actkit.core.edits.controller import StrengthOperation
from actkit.core.errors import InputError

FINENESS = 200
"""Places looked at between two neighbouring points, to find the nearest."""


@dataclass(frozen=True, eq=False)
class ConceptCurve:
    """A cubic spline through points; its parameter is 0 at the first and 1 at the second.

    Attributes:
        pieces_P4D: Coefficients of 1, s, s^2 and s^3 between neighbours.
        cyclic: Whether the last point's neighbour is the first.
    """

    pieces_P4D: Tensor
    cyclic: bool

    @classmethod
    def through(cls, points_ND: Tensor, cyclic: bool) -> "ConceptCurve":
        """Interpolate at least 2 points; periodic, or not-a-knot at the ends."""
        from scipy.interpolate import CubicSpline

        points_ND = points_ND.double()
        knots_ND = torch.cat([points_ND, points_ND[:1]]) if cyclic else points_ND
        ends = "periodic" if cyclic else "not-a-knot"
        spline = CubicSpline(range(len(knots_ND)), knots_ND.cpu().numpy(), bc_type=ends)
        pieces_4PD = torch.from_numpy(spline.c).to(points_ND.device).flip(0)
        return cls(pieces_4PD.transpose(0, 1).contiguous(), cyclic)

    def __call__(self, s: Tensor) -> Tensor:
        """Return the points (..., D) at parameters (...); an open curve stops at its ends."""
        num = len(self.pieces_P4D)
        s = s % num if self.cyclic else s.clamp(0, num)
        piece = s.floor().clamp(max=num - 1)
        t = (s - piece)[..., None].to(self.pieces_P4D)
        a, b, c, d = self.pieces_P4D[piece.long()].unbind(-2)
        return a + t * (b + t * (c + t * d))

    def distance(self, points_SD: Tensor) -> Tensor:
        """Return how far points are from the curve, (S,), to within its fineness."""
        num = len(self.pieces_P4D)
        dense = self(torch.linspace(0, num, FINENESS * num + 1).to(self.pieces_P4D))
        return torch.cdist(points_SD.double(), dense).amin(-1)


@dataclass(frozen=True, eq=False)
class Along(StrengthOperation):
    """Move along a curve: the strength is the share of the way.

    Attributes:
        pieces: (P, 4, D) of a `ConceptCurve`.
        cyclic: Of the curve.
        start: Parameter of the curve where the way begins.
        way: How far it goes, negative to go backwards.
    """

    identifier: ClassVar[str] = "manifold_steer.along"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer._manifold:Along",)
    pieces: Tensor
    cyclic: bool
    start: float
    way: float

    def __call__(self, x: Tensor) -> Tensor:
        """Return h + g(s) - g(s_i) with s = s_i + strength (s_j - s_i)."""
        curve = ConceptCurve(self.pieces.double(), self.cyclic)
        dose = torch.as_tensor(self.dose(x), dtype=torch.float64, device=x.device)
        here, there = torch.full_like(dose, self.start), self.start + dose * self.way
        shift = curve(there) - curve(here)
        return x + (shift[..., 0, :] if dose.dim() else shift).to(x)


def spaced(first: float, way: float, shares: Sequence[float]) -> Tensor:
    """Return the parameters at shares of the way, (S,) float64."""
    return first + way * torch.tensor(list(shares), dtype=torch.float64)


def components(off_CD: Tensor, num_components: int | None) -> Tensor:
    """Return the (K, D) leading components of centred centroids, float32.

    Raises:
        InputError: The centroids span fewer directions.
    """
    rank = int(torch.linalg.matrix_rank(off_CD))
    num = min(rank, 10) if num_components is None else num_components
    if not 1 <= num <= rank:
        raise InputError(
            f"num_components must be 1 to {rank}, the directions that centroids of shape "
            f"{tuple(off_CD.shape)} span, got {num}"
        )
    basis_KD: Tensor = torch.linalg.svd(off_CD, full_matrices=False).Vh[:num].float()
    return basis_KD
