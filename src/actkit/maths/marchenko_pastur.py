"""The Marchenko-Pastur law: which eigenvalues a covariance of pure noise has.

Shapes: N rows, D width, K eigenvalues.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import inf, pi, sqrt

import numpy as np
import torch
from torch import Tensor

from actkit.core.errors import InputError

_TRACY_WIDOM = 2.0234  # 99 % of the largest eigenvalues of noise are below, in units of `spread`
_GRID = 4097  # angles between which quantiles are interpolated


@dataclass(frozen=True, slots=True)
class MarchenkoPastur:
    """The law of the nonzero eigenvalues of X^T X / N, X being (N, D) noise, as N and D grow.

    With more columns than rows the D - N zeros are left out, so the law is always a density.

    Args:
        ratio: D / N (> 0).
        variance: Variance of the noise, sigma^2 (>= 0). At 0 all eigenvalues are 0, and there is
            no density.

    Raises:
        InputError: `ratio` is not positive, or `variance` is negative.

    Example:
        >>> MarchenkoPastur(ratio=0.25).edges
        (0.25, 2.25)
    """

    ratio: float
    variance: float = 1.0

    def __post_init__(self) -> None:
        """Check the range of both."""
        if not 0 < self.ratio < inf or not 0 <= self.variance < inf:
            raise InputError(
                f"ratio must be above 0 and variance at least 0, got {self.ratio}, {self.variance}"
            )

    @classmethod
    def fit(cls, values_D: Tensor, num_rows: int) -> "MarchenkoPastur":
        """Match the median of the nonzero eigenvalues that N rows can have.

        Outliers hardly move a median while they are few; if most eigenvalues are 0, it is 0.

        Args:
            values_D: All D eigenvalues, zeros included, in any order.
            num_rows: The number N of rows that they come from (>= 1).

        Raises:
            InputError: There is no eigenvalue or no row.
        """
        if not len(values_D) or num_rows < 1:
            raise InputError(f"need eigenvalues of at least 1 row, got {len(values_D)}, {num_rows}")
        unit = cls(len(values_D) / num_rows)
        bulk_K = values_D.double().sort(descending=True).values[:num_rows]
        return cls(unit.ratio, float(bulk_K.quantile(0.5) / unit.quantile(torch.tensor(0.5))))

    @property
    def edges(self) -> tuple[float, float]:
        """Return the smallest and the largest eigenvalue, sigma^2 (1 -+ sqrt(D / N))^2."""
        root = sqrt(self.ratio)
        return self.variance * (1 - root) ** 2, self.variance * (1 + root) ** 2

    def spread(self, num_rows: int) -> float:
        """Return the scale on which the largest eigenvalue of N rows strays from the edge."""
        root = sqrt(self.ratio)
        return float(self.variance * ((1 + root) ** 2 / num_rows) ** (2 / 3) / root ** (1 / 3))

    def limit(self, num_rows: int) -> float:
        """Return what the largest eigenvalue of N rows of noise exceeds in 1 % of cases."""
        return self.edges[1] + _TRACY_WIDOM * self.spread(num_rows)

    def density(self, x: Tensor) -> Tensor:
        """Return the density at any x; 0 outside the edges."""
        low, high = self.edges
        root = ((high - x) * (x - low)).clamp_min(0).sqrt()
        return root / (2 * pi * min(self.ratio, 1) * self.variance * x)

    def cdf(self, x: Tensor) -> Tensor:
        """Return the share of eigenvalues up to any x."""
        cosine = (1 + self.ratio - x.double() / self.variance) / (2 * sqrt(self.ratio))
        return _share(cosine.clamp(-1, 1).acos(), self.ratio)

    def quantile(self, share: Tensor) -> Tensor:
        """Return the eigenvalue below which a share in [0, 1] lies, right to 1e-6 of the edge."""
        shares, values = _table(self.ratio)
        return self.variance * torch.as_tensor(np.interp(share.double(), shares, values))

    def spike(self, strength: float) -> float:
        """Return the eigenvalue that a direction of variance sigma^2 (1 + strength) gets.

        Up to sqrt(D / N) it does not leave the bulk (Baik, Ben Arous and Peche 2005).
        """
        if strength <= sqrt(self.ratio):
            return self.edges[1]
        return self.variance * (1 + strength) * (1 + self.ratio / strength)

    def strength(self, value: Tensor) -> Tensor:
        """Return the strength whose `spike` an eigenvalue is; sqrt(D / N) inside the bulk."""
        half = (value.double() / self.variance - 1 - self.ratio) / 2
        return half.clamp_min(sqrt(self.ratio)) + (half**2 - self.ratio).clamp_min(0).sqrt()


def rounding(acts_ND: Tensor) -> float:
    """Return up to where an eigenvalue of the rows' covariance may come from rounding alone.

    Sums of products in float32 or less are right to about 2^-23 of their terms, so variances are
    to the square of that; in float64 the eigenvalues' own error is larger.
    """
    unit = 2**-52 if acts_ND.dtype == torch.float64 else 2**-46
    return unit * max(acts_ND.shape) * float(acts_ND.double().square().sum(1).mean())


def _share(angle: Tensor, ratio: float) -> Tensor:
    """Return the share below 1 + D/N - 2 sqrt(D/N) cos(angle), for noise of variance 1.

    In this angle the density is 2 sin^2 / pi / (1 + r^2 - 2 r cos), which has a closed integral;
    r = sqrt(D / N) or its inverse, whichever is below 1.
    """
    r = min(sqrt(ratio), 1 / sqrt(ratio))
    half = torch.atan2((1 + r) * (angle / 2).sin(), (1 - r) * (angle / 2).cos())
    integral = (1 + r**2) / 4 * angle + r / 2 * angle.sin() - (1 - r**2) / 2 * half
    return 2 / pi * integral / r**2


@lru_cache(maxsize=64)
def _table(ratio: float) -> tuple[Tensor, Tensor]:
    """Return shares and the eigenvalues below which they lie, for noise of variance 1."""
    angle = torch.linspace(0, pi, _GRID, dtype=torch.float64)
    return _share(angle, ratio), 1 + ratio - 2 * sqrt(ratio) * angle.cos()
