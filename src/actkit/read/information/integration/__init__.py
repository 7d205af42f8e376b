"""How far a series of activations is more than its parts, and whether that tells groups apart.

Shapes: T times, n units.
"""

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.read._base import Statistic
from actkit.read.information.integration._groups import (
    GroupComparison,
    compare_groups,
    principal_units,
    span_scores,
)

__all__ = [
    "GroupComparison",
    "Integration",
    "compare_groups",
    "integration",
    "principal_units",
    "span_scores",
]

Units = tuple[int, ...]
MOST = 12
"""Most units; their 2^(n - 1) - 1 bipartitions are all tried."""


@dataclass(frozen=True, slots=True)
class Integration:
    """The integrated information of a series.

    Attributes:
        phi: Stochastic interaction across the weakest bipartition, in nats.
        parts: That bipartition.
    """

    phi: float
    parts: tuple[Units, Units]


@method(
    source="Li 2025, doi:10.1016/j.nlp.2025.100163; Barrett and Seth 2011, PLoS CB 7(1)",
    interface=Statistic,
)
def integration(series_Tn: Tensor) -> Integration:
    """Return the Gaussian stochastic interaction of a series across its weakest bipartition.

    The measure for continuous series beside the paper's, which are for binary units (`big_phi`):
    SI = sum_k H(x_k(t) | x_k(t-1)) - H(x(t) | x(t-1)) over two parts k, from the covariances of
    consecutive values. The weakest bipartition has the least SI for each unit of its smaller
    part, since the entropies that normalise partitions of discrete units can be negative here.
    SI also counts what a common cause leaves in both parts at one time.

    Args:
        series_Tn: 2 to 12 units over at least 2n + 2 times; `principal_units` makes them from
            activations.

    Raises:
        InputError: Shapes do not fit, or units are not finite or depend linearly on each other.

    Example: Each unit is what the other one was, and a little noise of its own.
        >>> series = [torch.randn(2, generator=torch.Generator().manual_seed(0))]
        >>> noise_T2 = torch.randn(4000, 2, generator=torch.Generator().manual_seed(1))
        >>> for noise_2 in noise_T2:
        ...     series.append(0.6 * series[-1].flip(0) + 0.8 * noise_2)
        >>> found = integration(torch.stack(series))
        >>> round(found.phi, 1), found.parts  # log(1 / 0.8^2)
        (0.4, ((0,), (1,)))
    """
    times, num = series_Tn.shape if series_Tn.dim() == 2 else (0, 0)
    if not 2 <= num <= MOST or times < 2 * num + 2:
        raise InputError(
            f"need 2 to {MOST} units over at least 2n + 2 times, got shape {tuple(series_Tn.shape)}"
        )
    pairs = torch.cat([series_Tn[1:], series_Tn[:-1]], 1).double()
    both = pairs.T.corrcoef()  # the scale of a unit cancels
    if not both.isfinite().all() or int(torch.linalg.matrix_rank(both)) < 2 * num:
        raise InputError(
            "units must be finite and linearly independent over consecutive times, got rank "
            f"{int(torch.linalg.matrix_rank(both.nan_to_num()))} of {2 * num}"
        )
    whole = _entropy(both, tuple(range(num)))
    found = [
        Integration(_entropy(both, a) + _entropy(both, b) - whole, (a, b))
        for a, b in _bipartitions(num)
    ]
    return min(found, key=lambda cut: cut.phi / min(map(len, cut.parts)))


def _entropy(both: Tensor, part: Units) -> float:
    """Return H(x(t) | x(t-1)) of a part, but for a constant for each unit."""
    num = len(both) // 2
    now = torch.tensor(part, device=both.device)
    past = now + num
    cross = both[now][:, past]
    left = both[now][:, now] - cross @ torch.linalg.solve(both[past][:, past], cross.T)
    return float(torch.linalg.slogdet(left).logabsdet) / 2


def _bipartitions(num: int) -> list[tuple[Units, Units]]:
    """Return every division of the units in two parts; unit 0 is in the first."""
    found = []
    for size in range(num - 1):
        for rest in combinations(range(1, num), size):
            first = (0, *rest)
            found.append((first, tuple(i for i in range(num) if i not in first)))
    return found
