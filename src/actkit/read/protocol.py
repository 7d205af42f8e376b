"""The protocol of `read`: how close estimators come to a planted truth, and what they cost.

Each task plants a quantity in data of which the answer is known; each seed draws new data and a
new answer. Tasks: "rank" (dimensions of a signal under noise), "sparsity" (share of entries that
are off), "information" (mutual information of two Gaussians), "edge" (the largest eigenvalue that
noise alone can have), "similarity" (linear CKA of two representations, of fewer rows than units).

Shapes: N rows, D width, E width of the other side, R planted rank.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from actkit.catalog import get
from actkit.core.errors import InputError
from actkit.core.run.recording import Rows
from actkit.model import Model
from actkit.protocol import Comparison, Measure
from actkit.read._base import Reading
from actkit.read._estimators import ESTIMATORS

Data = tuple[Tensor, ...]
Estimator = Callable[..., float]


@dataclass(frozen=True)
class Quantity:
    """What estimators of one quantity are compared on; a user can pass one as a task.

    Attributes:
        name: Of the quantity.
        plant: Takes a generator, returns the data (one tensor of (N, D), or two) and the truth.
        estimators: By name; each takes the data and returns a number.
    """

    name: str
    plant: Callable[[Generator], tuple[Data, float]]
    estimators: Mapping[str, Estimator]

    def __str__(self) -> str:
        """Return the name."""
        return self.name


def _rank(gen: Generator) -> tuple[Data, float]:
    """Plant R directions of unequal strength under noise, off the origin."""
    rank = int(torch.randint(3, 21, (), generator=gen))
    signal_NR = torch.randn(2001, rank, generator=gen) * torch.linspace(2, 5, rank)
    basis_DR = torch.linalg.qr(torch.randn(97, rank, generator=gen)).Q
    noise_ND = 0.3 * torch.randn(2001, 97, generator=gen)
    return (signal_NR @ basis_DR.T + noise_ND + 3,), rank


def _sparsity(gen: Generator) -> tuple[Data, float]:
    """Plant a share of entries that are off but for a little noise."""
    share = 0.5 + 0.45 * float(torch.rand((), generator=gen))
    off_ND = torch.rand(1001, 65, generator=gen) < share
    on_ND = 1 + torch.empty(1001, 65).exponential_(generator=gen)
    noise_ND = 0.01 * torch.randn(1001, 65, generator=gen)
    return (torch.where(off_ND, noise_ND, on_ND),), float(off_ND.float().mean())


def _information(gen: Generator) -> tuple[Data, float]:
    """Draw two Gaussians of which the first units are correlated: I = -log(1 - rho^2) / 2."""
    rho = 0.3 + 0.65 * float(torch.rand((), generator=gen))
    x_ND = torch.randn(1001, 1, generator=gen)
    noise_ND = torch.randn(1001, 1, generator=gen)
    y_NE = rho * x_ND + math.sqrt(1 - rho**2) * noise_ND
    return (5 + 2 * x_ND, 30 * y_NE - 1), -math.log(1 - rho**2) / 2


def _edge(gen: Generator) -> tuple[Data, float]:
    """Hide three spikes in noise of variance s^2; its edge is s^2 (1 + sqrt(D / N))^2."""
    num, width = 1501, 201
    scale = 0.5 + 2 * float(torch.rand((), generator=gen))
    acts_ND = scale * torch.randn(num, width, generator=gen)
    acts_ND[:, :3] *= torch.tensor([2.0, 3.0, 5.0])
    return (acts_ND + 7,), scale**2 * (1 + math.sqrt(width / num)) ** 2


def _similarity(gen: Generator) -> tuple[Data, float]:
    """Mix X with noise into Y; linear CKA of the two follows from their covariances."""
    width, noise = 61, 3.0
    scale_D = torch.linspace(0.5, 3, width, dtype=torch.float64)
    mix_DE = torch.randn(width, width, generator=gen, dtype=torch.float64) / math.sqrt(width)
    x_ND = torch.randn(41, width, generator=gen, dtype=torch.float64) * scale_D
    y_NE = x_ND @ mix_DE + noise * torch.randn(41, width, generator=gen, dtype=torch.float64)
    cov_DD = scale_D.square().diag()
    cross_DE = cov_DD @ mix_DE
    cov_EE = mix_DE.T @ cross_DE + noise**2 * torch.eye(width, dtype=torch.float64)
    return (x_ND + 1, y_NE - 2), float(cross_DE.norm() ** 2 / cov_DD.norm() / cov_EE.norm())


def _streamed(name: str, field: Callable[[Any], float], **settings: Any) -> Estimator:
    """Return an estimator that feeds a reading of the catalog."""

    def estimate(acts_ND: Tensor) -> float:
        reading: Reading = get(name)(**settings)
        reading.update(acts_ND, Rows.of(torch.ones(1, len(acts_ND), dtype=torch.bool)).flat())
        return field(reading.result())

    return estimate


def _spiked(acts_ND: Tensor) -> Any:
    return get("mp_spectrum")(acts_ND)


def _mean_edge(acts_ND: Tensor) -> float:
    """Return the edge if all variance were noise."""
    return float(acts_ND.var(0).mean()) * (1 + math.sqrt(acts_ND.shape[1] / len(acts_ND))) ** 2


def _few_large(acts_ND: Tensor) -> float:
    """Return 1 - (sum |x|)^2 / (D sum x^2), the sparseness of Treves and Rolls, over the rows."""
    active_N = acts_ND.abs().sum(1).square() / acts_ND.square().sum(1) / acts_ND.shape[1]
    return float(1 - active_N.mean())


QUANTITIES = (
    Quantity(
        "rank",
        _rank,
        {
            "effective_rank": _streamed("spectrum", lambda r: r.effective_rank),
            "rankme": _streamed("spectrum", lambda r: r.rankme),
            "participation_ratio": _streamed("spectrum", lambda r: r.participation_ratio),
            "components_90": _streamed("spectrum", lambda r: r.num_90),
            "components_99": _streamed("spectrum", lambda r: r.num_99),
            "spikes": lambda acts_ND: _spiked(acts_ND).num_outliers,
        },
    ),
    Quantity(
        "sparsity",
        _sparsity,
        {
            "exact_zeros": _streamed("sparsity", lambda r: r.zeros),
            "threshold_0.01": _streamed("sparsity", lambda r: r.below[1], thresholds=(0.01,)),
            "threshold_0.1": _streamed("sparsity", lambda r: r.below[1], thresholds=(0.1,)),
            "hoyer": _streamed("sparsity", lambda r: r.hoyer),
            "treves_rolls": _few_large,
        },
    ),
    Quantity("information", _information, ESTIMATORS),
    Quantity(
        "edge",
        _edge,
        {
            "mp_spectrum": lambda acts_ND: _spiked(acts_ND).law.edges[1],
            "mean_variance": _mean_edge,
            "largest_eigenvalue": _streamed("spectrum", lambda r: float(r.eigenvalues_D[0])),
        },
    ),
    Quantity(
        "similarity",
        _similarity,
        {
            "cka": lambda x_ND, y_NE: get("cka")(x_ND, y_NE),
            "cka_unbiased": lambda x_ND, y_NE: get("cka")(x_ND, y_NE, unbiased=True),
        },
    ),
)


class ReadProtocol(Comparison):
    """Relative error against a planted truth, and cost."""

    metrics: ClassVar = (
        Measure("relative error", log=True),
        Measure("cost", "s per million rows", log=True),
        Measure("bias", better="neither"),
    )
    tasks: ClassVar = tuple(q.name for q in QUANTITIES)

    def methods(self, task: Any) -> Mapping[str, Any]:
        """Return the estimators of a quantity."""
        return self._quantity(task).estimators

    def measure(self, method: Any, task: Any, model: Model | None, seed: int) -> dict[str, float]:
        """Plant the quantity anew, estimate it, and time that; the network is not used."""
        data, truth = self._quantity(task).plant(torch.Generator().manual_seed(seed))
        method(*data)  # what is imported or cached at the first call is not its cost
        start = time.perf_counter()
        estimate = float(method(*data))
        seconds = time.perf_counter() - start
        off = (estimate - truth) / abs(truth)
        return {"relative error": abs(off), "cost": 1e6 * seconds / len(data[0]), "bias": off}

    def _quantity(self, task: Any) -> Quantity:
        if isinstance(task, Quantity):
            return task
        found = {q.name: q for q in QUANTITIES}
        if task not in found:
            raise InputError(f"task must be a Quantity or one of {', '.join(found)}, got {task!r}")
        return found[task]


PROTOCOL = ReadProtocol()
