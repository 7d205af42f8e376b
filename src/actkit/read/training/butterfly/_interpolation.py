"""What lies between two networks: their distance, and losses on the line between them.

Shapes: A points on the line.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, SupportsFloat

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parameters_to_vector

from actkit.model import Model

Loss = Callable[[nn.Module], SupportsFloat]
NUM_POINTS = 21
"""Points at which the line between two networks is measured, both ends among them."""


@dataclass(frozen=True, slots=True)
class Gap:
    """What lies between two networks.

    Attributes:
        distance: L2 norm of the difference of their parameters.
        barriers: For each loss how far it rises above the straight line between the two
            networks' own losses, at most, on the line between their parameters; in its units.
        curves: For each loss its (A,) float64 values on that line, at equal distances.
    """

    distance: float
    barriers: dict[str, float]
    curves: dict[str, Tensor]


def vector(network: nn.Module) -> Tensor:
    """Return a copy of all parameters in one."""
    vector: Tensor = parameters_to_vector(network.parameters()).detach().clone()
    return vector


@torch.no_grad()
def gap(one: nn.Module, other: nn.Module, losses: Mapping[str, Loss], inputs: Any) -> Gap:
    """Measure the gap; `inputs` serve the statistics of batch normalisation on the line."""
    share_A = torch.linspace(0, 1, NUM_POINTS, dtype=torch.float64)
    line = [_between(one, other, float(a), inputs) for a in share_A]
    curves = {n: torch.tensor([float(f(m)) for m in line]).double() for n, f in losses.items()}
    barriers = {n: float((c - torch.lerp(c[0], c[-1], share_A)).max()) for n, c in curves.items()}
    distance = (vector(one).double() - vector(other).double()).norm()
    return Gap(float(distance), barriers, curves)


def _between(one: nn.Module, other: nn.Module, share: float, inputs: Any) -> nn.Module:
    """Return the network at (1 - share) one + share other, its batch statistics measured anew."""
    network = copy.deepcopy(one)
    for p, q in zip(network.parameters(), other.parameters(), strict=True):
        p.lerp_(q, share)
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    if norms:
        batch = Model(network).encode(inputs)
        with torch.no_grad():  # by the network itself: a run would leave its statistics alone
            network(*batch.args, **batch.kwargs)
    return network.eval()
