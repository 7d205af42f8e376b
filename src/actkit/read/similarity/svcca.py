"""How much two representations' main directions correlate: singular vector CCA.

Shapes: N rows, D and E widths, K kept directions.
"""

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.read._base import Similarity
from actkit.read._paired_sums import Source, joint_sums

_ROUNDING = 1e-13  # a share of the largest variance below which a direction is rounding


@method(source="Raghu et al. 2017, arXiv:1706.05806, section 2", interface=Similarity)
def svcca(x: Source, y: Source, share: float = 0.99) -> float:
    """Return the mean canonical correlation of two representations' main directions.

    As in the paper: of each representation keep the fewest principal directions that hold a
    share of its variance, then average the canonical correlations of the two subspaces. Both
    steps are done on covariances, which stream in constant memory: time is N (D + E)^2 and
    memory 24 (D + E)^2 bytes. With `share=1` every direction is kept whose variance is above
    rounding (1e-13 of the largest), and the result is that of plain CCA, which any invertible
    linear map of either representation leaves as it is.

    Args:
        x: (N, D) tensor, array, memory map or column of a store, or an iterable of its blocks of
            rows; (N,) is one unit. Any dtype; the sums are float64.
        y: (N, E), the same rows.
        share: Of the variance that is kept, in (0, 1].

    Returns:
        The mean over the smaller number of kept directions, in [0, 1].

    Raises:
        InputError: The share is not in (0, 1]; the rows do not match, are not finite, or are all
            alike in one representation; or there are not more rows than kept directions of both
            together, when some correlations are 1 whatever the data.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> y = torch.tensor([1.0, -1.0, 1.0, -1.0])  # correlates 1/2 + 1/2 with x's two units
        >>> round(svcca(x, y), 6)
        1.0
    """
    if not 0 < share <= 1:
        raise InputError(f"share must be in (0, 1], got {share}")
    sums = joint_sums(x, y)
    white_x, white_y = (_whitening(sums.between(i, i), share) for i in (0, 1))
    num_kept = white_x.shape[1] + white_y.shape[1]
    if sums.num_rows <= num_kept:
        raise InputError(
            f"need more rows than the {num_kept} directions that hold {share:g} of the variance, "
            f"got {sums.num_rows}"
        )
    correlations_K = torch.linalg.svdvals(white_x.T @ sums.between(0, 1) @ white_y)
    return float(correlations_K.clamp_max(1).mean())


def _whitening(cross_DD: Tensor, share: float) -> Tensor:
    """Return the (D, K) main directions, each divided by the root of its sum of squares."""
    values_D, vectors_DD = torch.linalg.eigh(cross_DD)
    values_D, vectors_DD = values_D.flip(0).clamp_min(0), vectors_DD.flip(1)
    if not values_D[:1].sum() > 0:
        raise InputError("SVCCA needs activations that vary: all rows of one set are alike")
    held_D = values_D.cumsum(0) / values_D.sum()
    num_kept = 1 + int((held_D < share * (1 - _ROUNDING)).sum())
    num_kept = min(num_kept, int((values_D > _ROUNDING * values_D[0]).sum()))
    white_DK: Tensor = vectors_DD[:, :num_kept] / values_D[:num_kept].sqrt()
    return white_DK
