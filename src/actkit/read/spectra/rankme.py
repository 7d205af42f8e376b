"""How many dimensions representations use: exp of the entropy of their singular values.

Shapes: N rows, D width.
"""

from dataclasses import dataclass

from torch import Tensor

from actkit.catalog import method
from actkit.read._base import Statistic
from actkit.read._eigenvalues import eigenvalues
from actkit.read._sums import exp_entropy


@dataclass(frozen=True, slots=True)
class RankMe:
    """An effective rank, and whether there were rows enough to trust it.

    Attributes:
        value: From 1 (one direction) to the smaller of N and D (all directions alike).
        num_rows: N.
        min_rows: 4 D; with fewer rows the value comes out too low.
    """

    value: float
    num_rows: int
    min_rows: int

    @property
    def enough_rows(self) -> bool:
        """Say whether there were at least `min_rows`."""
        return self.num_rows >= self.min_rows


@method(
    source="Li et al. 2025, arXiv:2509.23024, RankMe; Garrido et al. 2023, ICML",
    interface=Statistic,
)
def rankme(
    given: Tensor, num_rows: int | None = None, *, centre: bool = True, squared: bool = False
) -> RankMe:
    """Return exp(-sum p log p) with p = sigma / sum(sigma) + 1e-7 of the singular values sigma.

    As in Li et al., on centred rows. Without `centre` it is the RankMe of Garrido et al., which
    `Spectrum` streams: there a large mean counts as one more, very large singular value. With
    `squared` p are the eigenvalues' shares, and the value is exp of the von Neumann entropy,
    `Spectrum`'s `effective_rank`.

    Args:
        given: (N, D) representations, one a text, or the (D,) eigenvalues of their population
            covariance, as `Spectrum` has them; singular values are eigenvalues' roots.
        num_rows: With eigenvalues the number N of their rows.
        centre: Take the mean off the rows; eigenvalues are taken as they are.
        squared: Weigh directions by eigenvalues (variance) in place of singular values.

    Raises:
        InputError: The shape does not fit, a value is not finite, or nothing varies.

    Example:
        >>> import torch
        >>> round(rankme(torch.tensor([4.0, 4.0, 4.0, 0.0]), num_rows=9).value, 3)
        3.0
    """
    eigen = eigenvalues(given, num_rows, centre)
    weights = eigen.values_D[: eigen.num_rows]  # N rows have N singular values
    value = exp_entropy(weights if squared else weights.sqrt(), floor=0.0 if squared else 1e-7)
    return RankMe(value, eigen.num_rows, eigen.min_rows)
