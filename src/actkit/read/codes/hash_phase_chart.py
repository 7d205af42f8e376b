"""How a neural code depends on width, training and data: the activation hash phase chart.

Shapes: N rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.opening.checkpoints import Checkpoints
from actkit.read._base import Experiment
from actkit.read.codes._patterns import read_code

PHASES = ("under-expressive", "critically-expressive", "sufficiently-expressive")


@dataclass(frozen=True, slots=True)
class Cell:
    """One network: its width, the step of its training, its number of samples, its codes.

    Attributes:
        redundancy: Share of the training codes that are copies of another.
        cluster_accuracy: Of K-means on the training codes; NaN with fewer codes than classes.
        knn_accuracy: Test accuracy of 9 neighbours by Hamming distance.
    """

    width: int
    step: int
    num_samples: int
    redundancy: float
    cluster_accuracy: float
    knn_accuracy: float

    def phase(self, best: float) -> str:
        """Return one of `PHASES`, given the best accuracy of a chart."""
        if self.redundancy <= 0.05 and self.knn_accuracy >= best - 0.05:
            return PHASES[2]
        return PHASES[0 if self.redundancy > 0.5 and self.knn_accuracy < best - 0.05 else 1]


@dataclass(frozen=True, slots=True)
class PhaseChart:
    """Every cell; those at step 0 are the untrained networks, the baseline of all others."""

    cells: tuple[Cell, ...]

    def phases(self) -> list[str]:
        """Return each cell's regime.

        Sufficiently expressive: at most 5 % of the codes are copies and the accuracy is within
        0.05 of the chart's best. Under-expressive: over half are copies and it is not.
        """
        best = max(cell.knn_accuracy for cell in self.cells)
        return [cell.phase(best) for cell in self.cells]

    def untrained(self, cell: Cell) -> Cell:
        """Return the same network before its training."""
        key = (cell.width, cell.num_samples)
        return next(c for c in self.cells if c.step == 0 and (c.width, c.num_samples) == key)


@method(source="He et al. 2021, arXiv:2101.05490, section 6", interface=Experiment)
def hash_phase_chart(
    train: Callable[[int, Tensor, Tensor], Any],
    widths: Sequence[int],
    sample_sizes: Sequence[int],
    data: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    sites: str | Sequence[str] | None = None,
    seed: int = 0,
) -> PhaseChart:
    """Measure the neural code over width, training time and sample size.

    As in the paper, which draws the borders of its three regimes by eye; `PhaseChart.phases`
    says where they are here. Step 0 is required: training can raise redundancy in narrow
    networks, and wide untrained codes classify nearly as well as trained ones.

    Args:
        train: Takes a width, inputs and labels; returns what `Checkpoints` takes, for example a
            generator of (step, network), that starts at step 0 with the untrained network.
        widths: Of the networks.
        sample_sizes: How many of the training rows, from the first, a network learns from.
        data: Inputs (N, ...) and labels (N,) for training.
        test: Inputs and labels for testing.
        sites: As in `neural_code`.
        seed: Of K-means.

    Raises:
        InputError: There are fewer training rows than asked for, a training does not start at
            step 0, or there is no width or sample size.

    Example:
        >>> import torch
        >>> def train(width, x, y):
        ...     yield 0, torch.nn.Sequential(torch.nn.Linear(1, width), torch.nn.ReLU())
        >>> x, y = torch.linspace(-1, 1, 20)[:, None], torch.arange(20) // 10
        >>> chart = hash_phase_chart(train, [1, 64], [20], (x, y), (x, y))
        >>> chart.cells[0].redundancy >= 0.9 > chart.cells[1].redundancy
        True
    """
    inputs, labels = data
    sizes = [*sample_sizes] or [0]
    if not widths or not 9 <= min(sizes) <= max(sizes) <= len(inputs):
        raise InputError(
            f"need widths, and sample sizes from 9 to the {len(inputs)} training rows, got "
            f"{list(widths)} and {list(sample_sizes)}"
        )
    cells = []
    pairs = [(width, size) for width in widths for size in sample_sizes]
    for width, size in track(pairs, "phase chart"):
        x, y = inputs[:size], labels[:size]
        for place, checkpoint in enumerate(Checkpoints(train(width, x, y))):
            if place == 0 and checkpoint.step != 0:
                raise InputError(f"a training must start at step 0, got {checkpoint.step}")
            code, test_code = (read_code(checkpoint.model, d, sites, 256) for d in (x, test[0]))
            enough = code.num_different() >= len(set(y.tolist()))
            cells.append(
                Cell(
                    width,
                    checkpoint.step,
                    size,
                    redundancy=code.redundancy(),
                    cluster_accuracy=code.cluster_accuracy(y, seed) if enough else nan,
                    knn_accuracy=code.knn_accuracy(y, test_code, test[1]),
                )
            )
    return PhaseChart(tuple(cells))
