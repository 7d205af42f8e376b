"""How fast a spectrum decays: the exponent of the power law that its eigenvalues follow.

Shapes: N rows, D width.
"""

from dataclasses import dataclass

from torch import Tensor

from actkit.catalog import method
from actkit.read._base import Statistic
from actkit.read._eigenvalues import decay, eigenvalues


@dataclass(frozen=True, slots=True)
class AlphaReQ:
    """A decay exponent, how well it fits, and whether there were rows enough to trust it.

    Attributes:
        alpha: lambda_i ~ i^-alpha; small where the variance is spread over many directions.
        r2: Share of the variance of log lambda that the line explains; NaN if all are equal.
        window: The first and last index i, counted from 1, that the line went through.
        num_rows: N.
        min_rows: 4 D; with fewer rows alpha comes out too high.
    """

    alpha: float
    r2: float
    window: tuple[int, int]
    num_rows: int
    min_rows: int

    @property
    def enough_rows(self) -> bool:
        """Say whether there were at least `min_rows`."""
        return self.num_rows >= self.min_rows


@method(source="Li et al. 2025, arXiv:2509.23024, alpha-ReQ", interface=Statistic)
def alpha_req(
    given: Tensor,
    num_rows: int | None = None,
    *,
    centre: bool = True,
    window: tuple[int, int] = (10, 100),
) -> AlphaReQ:
    """Return minus the slope of log lambda_i over log i, by least squares over a window of i.

    The window leaves out the first eigenvalues, which stand apart, and the last, which few rows
    estimate badly; the paper does not fix it. It ends at the last eigenvalue above 0.

    Args:
        given: (N, D) representations, one a text, or the (D,) eigenvalues of their population
            covariance, as `Spectrum` has them.
        num_rows: With eigenvalues the number N of their rows.
        centre: Take the mean off the rows; eigenvalues are taken as they are.
        window: First and last index i, counted from 1.

    Raises:
        InputError: Fewer than 3 eigenvalues above 0 are in the window, the shape does not fit,
            a value is not finite, or nothing varies.

    Example:
        >>> import torch
        >>> values_D = torch.arange(1.0, 65.0) ** -1.5
        >>> round(alpha_req(values_D, num_rows=4000).alpha, 4)
        1.5
    """
    eigen = eigenvalues(given, num_rows, centre)
    found = decay(eigen.values_D, window)
    return AlphaReQ(*found, eigen.num_rows, eigen.min_rows)
