"""How paths turn: rotations in a phase portrait, curvature, and their principal plane.

Shapes: N tokens, S sites, D width, P = S - 1 steps.
"""

from math import nan, pi

import torch
from torch import Tensor

from actkit.core.errors import InputError


def rotations(path_SD: Tensor) -> Tensor:
    """Return how often each unit goes round its phase portrait, (D,); clockwise is positive.

    The phase portrait is (a_s, a_{s+1} - a_s), and the angle is about its centroid. A unit that
    swings turns clockwise; one that never moves has no angle, NaN.

    Args:
        path_SD: (S, D) values of each unit at each site.

    Example:
        >>> path_SD = torch.tensor([0.0, 1.0, 0.0, -1.0] * 3).double()[:, None]
        >>> rotations(path_SD[:10])
        tensor([2.], dtype=torch.float64)
    """
    step_PD = path_SD.diff(dim=0).double()
    phase_PD = torch.complex(path_SD[:-1].double(), step_PD)
    phase_PD = phase_PD - phase_PD.mean(0)
    turned_D = (phase_PD[1:] * phase_PD[:-1].conj()).angle().sum(0)
    return (-turned_D / (2 * pi)).where(step_PD.any(0), nan)


def turning_angles(path_SD: Tensor) -> Tensor:
    """Return the angle between consecutive steps of a path in radians, (S - 2,): its curvature.

    NaN where a step is zero.

    Example:
        >>> turning_angles(torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 1.0]]))
        tensor([1.5708], dtype=torch.float64)
    """
    step_PD = path_SD.diff(dim=0).double()
    unit_PD = step_PD / step_PD.norm(dim=1, keepdim=True)
    one, next_one = unit_PD[:-1], unit_PD[1:]
    return 2 * torch.atan2((next_one - one).norm(dim=1), (next_one + one).norm(dim=1))


def reduced_paths(paths_NSD: Tensor, num_components: int = 2) -> Tensor:
    """Return paths in the principal components of all their points, (N, S, num_components).

    Args:
        paths_NSD: (N, S, D) states of N tokens at S sites.
        num_components: At most D.

    Raises:
        InputError: There are too few dimensions, or the axes do not fit.

    Example:
        >>> reduced_paths(torch.tensor([[[0.0, 3.0], [0.0, 5.0]]]), 1).abs()
        tensor([[[1.],
                 [1.]]], dtype=torch.float64)
    """
    if paths_NSD.dim() != 3 or not 1 <= num_components <= paths_NSD.shape[2]:
        raise InputError(
            f"paths must be (N, S, D) with D of at least {num_components} components (>= 1), "
            f"got shape {tuple(paths_NSD.shape)}"
        )
    points = paths_NSD.double().flatten(0, 1)
    points = points - points.mean(0)
    vectors_DD = torch.linalg.eigh(points.mT @ points).eigenvectors.flip(1)
    reduced: Tensor = points @ vectors_DD[:, :num_components]
    return reduced.reshape(*paths_NSD.shape[:2], num_components)
