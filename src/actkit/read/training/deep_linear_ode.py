"""How two or more pathways of a deep linear network share what they learn, in closed dynamics.

Shapes: T times, P pathways.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.read._base import Statistic

_EXACT = {"rtol": 1e-8, "atol": 1e-10}


@dataclass(frozen=True, slots=True)
class DeepLinearPaths:
    """What each pathway has learned of one singular mode.

    Attributes:
        times_T: (T,) float64 times; one unit is one step of gradient descent over its rate.
        strengths_TP: (T, P) the pathways' parts of the mode; they add up to the whole.
    """

    times_T: Tensor
    strengths_TP: Tensor

    @property
    def shares(self) -> Tensor:
        """Return each pathway's share of the learned mode, in [0, 1]."""
        return self.strengths_TP / self.strengths_TP.sum(1, keepdim=True)


@method(source="Kleinman et al. 2024, arXiv:2308.12221, ICLR", interface=Statistic)
def deep_linear_ode(
    times: Sequence[float] | Tensor,
    depth: int,
    *,
    target: float = 1.0,
    noise: Sequence[float] = (0.0, 0.0),
    start: Sequence[float] = (0.02, 0.02),
    deficit: tuple[float, float] = (0.0, 0.0),
) -> DeepLinearPaths:
    """Integrate da_i/dt = D a_i^(2 - 2/D) (s - sum_j a_j - v_i a_i) for each pathway i.

    It is gradient flow on half the squared error of a sum of linear networks of depth D, one
    for each sensor, that start small, balanced and aligned with the mode. The sensors show the
    same signal. During the deficit the first sensor is silent: its pathway stays as it is and
    adds nothing. The paper has two pathways without noise; here each sensor may have its own.

    Args:
        times: When to report, rising from 0 or later.
        depth: Number D of linear layers in each pathway (>= 1).
        target: Strength s of the mode (> 0), where the signal has unit variance.
        noise: Variance v_i of each sensor's own noise (>= 0); its length is the number P.
        start: Strength a_i of each pathway at time 0 (> 0).
        deficit: Onset and length of the first sensor's silence (>= 0).

    Raises:
        InputError: A number is out of its range, or `noise` and `start` differ in length.

    Example:
        >>> found = deep_linear_ode([0.0, 50.0], depth=2)
        >>> found.strengths_TP[-1]  # equal pathways share the target
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    times_T = torch.as_tensor(times, dtype=torch.float64)
    _check(times_T, depth, target, noise, start, deficit)
    from scipy.integrate import solve_ivp

    noise_P, state_P = torch.tensor([noise, start], dtype=torch.float64)
    onset, end = deficit[0], sum(deficit)
    found: list[Tensor] = []
    for first, last, seen in ((0.0, onset, 1.0), (onset, end, 0.0), (end, inf, 1.0)):
        inside_T = times_T[(times_T >= first) & (times_T < last)]
        if not len(inside_T) and last in (first, inf):
            continue
        stop = min(last, max(first + 1.0, float(times_T[-1])))
        seen_P = torch.tensor([seen, *[1.0] * (len(start) - 1)], dtype=torch.float64)

        def slope(_: float, a: Any, seen_P: Tensor = seen_P) -> Any:
            a_P = torch.as_tensor(a)
            residual_P = target - (seen_P * a_P).sum() - noise_P * a_P
            return seen_P * depth * a_P ** (2 - 2 / depth) * residual_P

        flow = solve_ivp(slope, (first, stop), state_P, "DOP853", dense_output=True, **_EXACT)
        found += [torch.from_numpy(flow.sol(float(t))) for t in inside_T]
        state_P = torch.from_numpy(flow.y[:, -1])
    return DeepLinearPaths(times_T, torch.stack(found))


def _check(
    times_T: Tensor,
    depth: int,
    target: float,
    noise: Sequence[float],
    start: Sequence[float],
    deficit: tuple[float, float],
) -> None:
    rising = times_T.dim() == 1 and len(times_T) and (times_T.diff() > 0).all()
    if not (rising and times_T[0] >= 0 and times_T.isfinite().all()):
        raise InputError(f"times must rise from 0 or later, got {times_T.tolist()}")
    if depth < 1 or not (0 < target < inf):
        raise InputError(f"depth must be at least 1 and target above 0, got {depth} and {target}")
    if len(noise) != len(start) or len(start) < 2:
        raise InputError(
            "noise and start must have one entry for each of at least 2 pathways, "
            f"got {noise} and {start}"
        )
    if not (all(0 <= v < inf for v in noise) and all(0 < a < inf for a in start)):
        raise InputError(f"noise must be at least 0 and start above 0, got {noise} and {start}")
    if not all(0 <= x < inf for x in deficit):
        raise InputError(f"onset and length of a deficit must be at least 0, got {deficit}")
