"""How alike two representations are: linear centred kernel alignment (CKA).

Shapes: N rows, D and E widths.
"""

from actkit.catalog import method
from actkit.read._base import Similarity
from actkit.read._paired_sums import Source, alignment, joint_sums, varied


@method(
    source="Kornblith et al. 2019, arXiv:1905.00414, section 3; "
    "Nguyen et al. 2020, arXiv:2010.15327, section 2",
    interface=Similarity,
)
def cka(x: Source, y: Source, unbiased: bool = False) -> float:
    """Return the linear CKA of two representations of the same rows.

    HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)) with HSIC = |X^T Y|^2 of centred activations, as in
    the first paper; with `unbiased` the estimator HSIC_1 of Song et al. 2012, which the second
    takes. The second averages HSIC_1 over batches; here it is that of all rows together, exact
    from sums of products that stream in constant memory. Rotation, shift and scale of either
    representation change nothing.

    Time is N (D + E)^2 and memory 24 (D + E)^2 bytes, whatever N. Where units outnumber the rows
    by far, `kernel_alignment` with its linear kernel gives the same biased value from rows.

    Args:
        x: (N, D) tensor, array, memory map or column of a store, or an iterable of its blocks of
            rows; (N,) is one unit. Any dtype; the sums are float64.
        y: (N, E), the same rows.
        unbiased: Correct for the number of rows. The biased value nears 1 for any two
            representations with many units and few rows; this one stays near 0 for unrelated
            ones, and may be negative.

    Returns:
        1 for the same geometry, 0 for none in common; in [0, 1] unless `unbiased`.

    Raises:
        InputError: There are fewer than 2 rows (4 if `unbiased`), the rows do not match, some
            hold NaN or infinity, or all rows of one representation are alike (if `unbiased`,
            equally far from each other).

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> y = x[:, :1]  # |X^T Y|^2 = 4, |X^T X|^2 = 8, |Y^T Y|^2 = 4
        >>> round(cka(x, y) ** 2, 6)
        0.5
    """
    sums = joint_sums(x, y, least=4 if unbiased else 2)
    return varied(float(alignment(sums, unbiased)[0, 1]), "CKA")
