"""A linear quadratic regulator over layers, in as many dimensions as there are layers to come.

Shapes: D width, K sites, J later sites.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Plan:
    """The optimal control at one site, u = W^T (drive - gain W z), where z is x less its mean.

    Attributes:
        pulled_JD: W, the pulled back directions of the later sites.
        gain_JJ: Symmetric, positive semidefinite.
        drive_J: For strength 1.
    """

    pulled_JD: Tensor
    gain_JJ: Tensor
    drive_J: Tensor


def riccati(
    pulled: Sequence[Tensor], halves_K: Tensor, control_cost: float, control: Collection[int]
) -> dict[int, Plan]:
    """Return the plan of each controlled site that minimises a tracking cost.

    The cost is sum_k (v_k^T z_k - h_k)^2 + r sum_k |u_k|^2 with z_(k+1) = A_k (z_k + u_k). The
    value of a state is z^T V^T P V z - 2 p^T V z, with V = [v_k; W_k] and W_k = V_(k+1) A_k, so
    the recursion runs in as many dimensions as there are sites to come.

    Args:
        pulled: W of each site but the last, (J, D) float64.
        halves_K: h, the setpoints of strength 1 as deviations from the mean.
        control_cost: r.
        control: Sites where u may differ from 0.
    """
    plans = {}
    one = halves_K.new_ones(1, 1)
    p, P = halves_K[-1:], one
    for k in reversed(range(len(pulled))):
        W = pulled[k]
        if k in control:
            N = torch.linalg.inv(control_cost * torch.eye(len(W)).to(W) + P @ W @ W.mT)
            gain, drive = N @ P, N @ p
            plans[k] = Plan(W, (gain + gain.mT) / 2, drive)
            P, p = control_cost * gain, control_cost * drive
        P, p = torch.block_diag(one, P), torch.cat([halves_K[k : k + 1], p])  # type: ignore[no-untyped-call]
    return plans


def open_loop(pulled: Sequence[Tensor], plans: Mapping[int, Plan]) -> dict[int, Tensor]:
    """Return what the regulator adds, (D,), if the state is the mean and the model is exact."""
    pushes = {}
    ahead_J = pulled[0].new_zeros(len(pulled) + 1)  # V z: the features that would be met
    for k, pulled_JD in enumerate(pulled):
        ahead_J = ahead_J[1:]
        if k in plans:
            pushes[k] = (plans[k].drive_J - plans[k].gain_JJ @ ahead_J) @ pulled_JD
            ahead_J = ahead_J + pulled_JD @ pushes[k]
    return pushes
