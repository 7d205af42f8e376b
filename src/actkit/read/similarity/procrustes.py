"""How far one representation is from another after the best rotation: Procrustes distance.

Shapes: N rows, D and E widths.
"""

import torch

from actkit.catalog import method
from actkit.read._base import Similarity
from actkit.read._paired_sums import Source, joint_sums, varied


@method(
    source="Williams et al. 2021, arXiv:2110.14739, section 2; "
    "Ding et al. 2021, arXiv:2108.01661, section 2",
    interface=Similarity,
)
def procrustes(x: Source, y: Source) -> float:
    """Return the distance that is left between two representations after the best rotation.

    Both are centred and scaled to unit Frobenius norm, then min_Q |X - Y Q| over orthogonal Q,
    which is sqrt(2 - 2 |X^T Y|_*) with the nuclear norm: the metric of the first paper, which
    obeys the triangle inequality. The second paper's distance is its square. Of two widths the
    smaller is padded with zeros, which the formula does by itself.

    Products stream in constant memory: time is N (D + E)^2 and memory 24 (D + E)^2 bytes.
    Distances below 1e-7 are rounding.

    Args:
        x: (N, D) tensor, array, memory map or column of a store, or an iterable of its blocks of
            rows; (N,) is one unit. Any dtype; the sums are float64.
        y: (N, E), the same rows.

    Returns:
        0 if one is a rotated, shifted and scaled copy of the other, up to sqrt(2).

    Raises:
        InputError: There are fewer than 2 rows, the rows do not match, some hold NaN or
            infinity, or all rows of one representation are alike.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> y = x[:, :1]  # |X^T Y|_* = 2 / (2 sqrt(2))
        >>> round(procrustes(x, y) ** 2, 6) == round(2 - 2**0.5, 6)
        True
    """
    sums = joint_sums(x, y)
    overlap = torch.linalg.svdvals(sums.between(0, 1)).sum() / sums.squares().prod().sqrt()
    return varied(float((2 - 2 * overlap).clamp_min(0).sqrt()), "the Procrustes distance")
