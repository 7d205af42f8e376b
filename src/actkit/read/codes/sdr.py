"""How reliably sparse binary codes are recognised from a few of their bits.

Shapes: N rows, D width, K synapses.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.read._base import Law


@method(source="Ahmad and Hawkins 2016, arXiv:1601.00720")
@dataclass(frozen=True)
class SDR(Law):
    """Exact error probabilities of a detector that watches some bits of a sparse code.

    Of `num_cells` cells `num_active` are on. The detector has learned `num_synapses` cells of a
    stored pattern and fires if at least `threshold` of them are on. Codes are drawn evenly from
    all. As in the paper; the union of several patterns is given exactly beside the paper's
    binomial, which takes cells of a union for independent and is a third too high for one
    pattern of 16 in 256 cells.

    Args:
        num_cells: n, cells in the population.
        num_active: a, cells that are on (1 to n).
        num_synapses: s, cells of the stored pattern that are watched (1 to a).

    Raises:
        InputError: The sizes do not fit.

    Example:
        >>> round(SDR(256, 16, 12).false_match(4), 6)
        0.003771
        >>> SDR(4, 2, 2).false_match(2)  # one of 6 pairs
        0.16666666666666666
    """

    num_cells: int
    num_active: int
    num_synapses: int

    def __post_init__(self) -> None:
        """Check the sizes."""
        n, a, s = self.num_cells, self.num_active, self.num_synapses
        if not 1 <= s <= a <= n:
            raise InputError(f"need 1 <= synapses <= active <= cells, got {s}, {a} and {n}")

    def false_match(self, threshold: int, num_patterns: int = 1) -> float:
        """Return the probability that the union of random patterns reaches the threshold.

        For one pattern sum_b C(s, b) C(n - s, a - b) / C(n, a) over b >= threshold. Each further
        pattern covers of the synapses that are still free a number that is hypergeometric too;
        these steps are followed exactly, without differences of large terms.
        """
        from scipy.stats import hypergeom

        self._check(threshold, num_patterns)
        n, a, s = self.num_cells, self.num_active, self.num_synapses
        if num_patterns == 1:
            return float(hypergeom.sf(threshold - 1, n, s, a))
        step_KK = torch.zeros(s + 1, s + 1, dtype=torch.float64)
        for covered in range(s + 1):
            new = torch.arange(s - covered + 1)
            step_KK[covered, covered:] = torch.from_numpy(hypergeom.pmf(new, n, s - covered, a))
        return float(torch.linalg.matrix_power(step_KK, num_patterns)[0, threshold:].sum())

    def binomial_match(self, threshold: int, num_patterns: int = 1) -> float:
        """Return the paper's approximation of `false_match`: each synapse is on by itself."""
        from scipy.stats import binom

        self._check(threshold, num_patterns)
        return float(binom.sf(threshold - 1, self.num_synapses, self.density(num_patterns)))

    def density(self, num_patterns: int) -> float:
        """Return the expected share of cells that are on in a union, 1 - (1 - a / n)^M."""
        return 1 - (1 - self.num_active / self.num_cells) ** num_patterns

    def miss(self, threshold: int, noise: float) -> float:
        """Return the probability that the stored pattern is missed.

        Args:
            threshold: Synapses that must be on.
            noise: Probability that a cell of the pattern is off.
        """
        from scipy.stats import binom

        self._check(threshold, 1)
        if not 0 <= noise <= 1:
            raise InputError(f"noise must be in [0, 1], got {noise}")
        return float(binom.cdf(threshold - 1, self.num_synapses, 1 - noise))

    def best_threshold(self, noise: float, num_patterns: int = 1) -> int:
        """Return the smallest threshold with the least sum of misses and false matches."""
        errors = [
            self.miss(t, noise) + self.false_match(t, num_patterns)
            for t in range(1, self.num_synapses + 1)
        ]
        return 1 + errors.index(min(errors))

    def capacity(self, threshold: int, most: float) -> int:
        """Return how many patterns a union can hold with at most this chance of a false match."""
        if not 0 < most < 1:
            raise InputError(f"a chance must be in (0, 1), got {most}")
        low, high = 0, 1
        while self.false_match(threshold, high) <= most:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.false_match(threshold, middle) <= most
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _check(self, threshold: int, num_patterns: int) -> None:
        if not 1 <= threshold <= self.num_synapses or num_patterns < 1:
            raise InputError(
                f"need a threshold of 1 to {self.num_synapses} and at least 1 pattern, got "
                f"{threshold} and {num_patterns}"
            )


def binarise(acts_ND: Tensor, num_active: int) -> Tensor:
    """Return (N, D) bool codes: the largest activations of each row are on.

    Args:
        acts_ND: (N, D) activations.
        num_active: How many are on in each row (1 to D); of equal ones the first.
    """
    if acts_ND.dim() != 2 or not 1 <= num_active <= acts_ND.shape[1]:
        raise InputError(
            f"need (N, D) activations and 1 to D active, got shape {tuple(acts_ND.shape)} and "
            f"{num_active}"
        )
    if bad := int(acts_ND.isnan().any(1).sum()):
        raise InputError(f"activations must be numbers, {bad} rows hold NaN")
    first = acts_ND.sort(dim=1, descending=True, stable=True).indices[:, :num_active]
    return torch.zeros(acts_ND.shape, dtype=torch.bool).scatter_(1, first.cpu(), value=True)


def effective_cells(codes_ND: Tensor) -> float:
    """Return how many evenly used cells would make two rows overlap as much as these do.

    a^2 / (mean overlap of two different rows); D if the rows are random, fewer if cells fire
    unevenly or together; infinite if no two rows overlap.
    """
    if codes_ND.dim() != 2 or len(codes_ND) < 2:
        raise InputError(f"need at least 2 rows of codes, got shape {tuple(codes_ND.shape)}")
    counts_D, active_N = codes_ND.sum(0).double(), codes_ND.sum(1).double()
    pairs = len(codes_ND) * (len(codes_ND) - 1)
    overlap = (counts_D.square().sum() - counts_D.sum()) / pairs
    return float((active_N.sum().square() - active_N.square().sum()) / pairs / overlap)


@dataclass(frozen=True, slots=True)
class Collisions:
    """Error rates of detectors on real codes, beside what random codes would give.

    Attributes:
        threshold: The synapses that must be on.
        match: Share of noisy copies of the stored row that are recognised.
        predicted_match: The same for random codes.
        false_match: Share of other rows that are taken for the stored one.
        predicted_false_match: The same for random codes of the same width.
        effective_false_match: The same for random codes of the effective number of cells.
        effective_cells: See `effective_cells`.
    """

    threshold: int
    match: float
    predicted_match: float
    false_match: float
    predicted_false_match: float
    effective_false_match: float
    effective_cells: float


def collisions(
    codes_ND: Tensor, num_synapses: int, noise: float = 0.2, num_draws: int = 2000, seed: int = 0
) -> Collisions:
    """Store random rows in detectors and count what the detectors mistake, against the formula.

    Each draw stores a row: `num_synapses` of its active cells. It is shown a copy in which each
    cell has gone off with probability `noise`, and one other row; the threshold is the formula's
    best for random codes of the same size.

    Args:
        codes_ND: (N, D) bool codes, with equally many cells on in each row.
        num_synapses: Cells that a detector watches.
        noise: Probability that a cell of the stored row is off.
        num_draws: Detectors.
        seed: Of rows, synapses and noise.
    """
    counts_N = codes_ND.sum(1)
    if codes_ND.dim() != 2 or len(codes_ND) < 2 or counts_N.min() != counts_N.max():
        raise InputError(
            "codes must be at least 2 rows with equally many cells on, got shape "
            f"{tuple(codes_ND.shape)}"
        )
    active = int(counts_N[0])
    sdr = SDR(codes_ND.shape[1], active, num_synapses)
    threshold = sdr.best_threshold(noise)
    gen = torch.Generator().manual_seed(seed)
    one = torch.randint(len(codes_ND), (num_draws,), generator=gen)
    step = torch.randint(1, len(codes_ND), (num_draws,), generator=gen)
    cells = codes_ND.nonzero()[:, 1].reshape(len(codes_ND), active)
    picked = torch.rand(num_draws, active, generator=gen).argsort(1)[:, :num_synapses]
    synapses = cells[one].gather(1, picked)
    kept = (torch.rand(synapses.shape, generator=gen) >= noise).sum(1)
    other = codes_ND[(one + step) % len(codes_ND)].gather(1, synapses).sum(1)
    cells_used = effective_cells(codes_ND)
    even = SDR(max(active, round(min(cells_used, codes_ND.shape[1]))), active, num_synapses)
    return Collisions(
        threshold=threshold,
        match=float((kept >= threshold).double().mean()),
        predicted_match=1 - sdr.miss(threshold, noise),
        false_match=float((other >= threshold).double().mean()),
        predicted_false_match=sdr.false_match(threshold),
        effective_false_match=even.false_match(threshold),
        effective_cells=cells_used,
    )
