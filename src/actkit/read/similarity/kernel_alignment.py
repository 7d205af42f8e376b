"""How alike two representations are under any kernel: centred kernel alignment from rows.

Shapes: N rows, D and E widths.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.read._base import Similarity
from actkit.read._paired_sums import check_rows, varied

KERNELS = ("linear", "rbf")
_ROWS = 1024  # of a block of the kernel matrix
_MOST = 1000  # rows whose distances give the median
_ROUNDING = 1e-12  # a share of its terms below which an alignment is the rounding of zero


@method(
    source="Cortes, Mohri and Rostamizadeh 2012, arXiv:1203.0550, definition 4; "
    "Kornblith et al. 2019, arXiv:1905.00414, section 3",
    interface=Similarity,
)
def kernel_alignment(x: Any, y: Any, kernel: str = "linear", bandwidth: float = 1.0) -> float:
    """Return the centred alignment of two representations' kernel matrices.

    <K, L> / (|K| |L|) of the centred N x N kernel matrices, as in the first paper. They are
    never held: blocks of 1024 x 1024 are formed and summed, so memory is constant beside two
    sums per row, and time is N^2 (D + E). The linear kernel gives what `cka` gives, in less time
    where units outnumber rows.

    Args:
        x: (N, D) tensor, array, memory map or column of a store; it is read N / 1024 times.
        y: (N, E), the same rows.
        kernel: "linear", or "rbf", exp(-d^2 / (2 s^2)).
        bandwidth: s as a multiple of the median distance between rows, as in the second paper;
            beyond 1000 rows the median is over that many, evenly spaced.

    Returns:
        1 for the same geometry, 0 for none in common; in [0, 1].

    Raises:
        InputError: The kernel is unknown or the bandwidth is not positive; the input has no
            rows that can be read again; there are fewer than 2 rows, they do not match, or hold
            NaN or infinity; all rows of one representation are alike; or more than half of its
            distances are 0, so that they have no median scale.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> round(kernel_alignment(x, x[:, :1]) ** 2, 6)
        0.5
    """
    if kernel not in KERNELS or not bandwidth > 0:
        raise InputError(
            f"kernel must be one of {', '.join(KERNELS)} with a bandwidth above 0, "
            f"got {kernel!r} and {bandwidth}"
        )
    views = [_View(x), _View(y)]
    if views[0].num_rows != views[1].num_rows:
        raise InputError(f"rows must match, got {views[0].num_rows} and {views[1].num_rows}")
    num_nonfinite = int((~(views[0].finite() & views[1].finite())).sum())
    check_rows(views[0].num_rows, num_nonfinite, 2)
    scales = [v.scale() * bandwidth if kernel == "rbf" else None for v in views]
    return varied(_aligned(views, scales), "kernel alignment")


def _aligned(views: list["_View"], scales: list[float | None]) -> float:
    """Return the alignment from sums over blocks of both kernel matrices."""
    n = views[0].num_rows
    sums_2N = torch.zeros(2, n, dtype=torch.float64)
    products_22 = torch.zeros(2, 2, dtype=torch.float64)
    starts = range(0, n, _ROWS)
    for i in track(starts, "aligning kernels"):
        left = [view[i] for view in views]
        for j in starts:
            kernels = torch.stack(
                [
                    _kernel(rows, view[j], scale).cpu()
                    for rows, view, scale in zip(left, views, scales, strict=True)
                ]
            )
            sums_2N[:, i : i + _ROWS] += kernels.sum(2)
            products_22 += kernels.flatten(1) @ kernels.flatten(1).T
    total_2 = sums_2N.sum(1)
    centred_22 = products_22 - 2 / n * sums_2N @ sums_2N.T + total_2.outer(total_2) / n**2
    own_2 = centred_22.diagonal()
    own_2 = own_2.where(own_2 > _ROUNDING * products_22.diagonal(), torch.nan)
    return float(centred_22[0, 1] / own_2.prod().sqrt())


def _kernel(left_ND: Tensor, right_MD: Tensor, scale: float | None) -> Tensor:
    """Return the (N, M) linear kernel, or the RBF kernel of a scale."""
    if scale is None:
        return left_ND @ right_MD.T
    return (torch.cdist(left_ND, right_MD) / scale).square_().div_(-2).exp_()


class _View:
    """A representation whose blocks of rows are read again and again, as float64.

    They are shifted by the first block's mean, which centring takes out again.
    """

    def __init__(self, source: Any) -> None:
        if not (hasattr(source, "shape") and len(source.shape)):
            raise InputError(
                "kernels need rows that can be read again, a tensor, an array or a column of a "
                f"store, got {type(source).__name__}"
            )
        self._source, self.num_rows = source, int(source.shape[0])
        self._shift: Tensor | float = 0.0
        if self.num_rows:
            first_D = self[0][0]
            self._shift = first_D + (self[0] - first_D).mean(0)

    def __getitem__(self, start: int) -> Tensor:
        """Return the block of rows from a first one."""
        return self._rows(slice(start, start + _ROWS))

    def _rows(self, index: slice) -> Tensor:
        part = self._source[index]
        part = torch.as_tensor(np.array(part) if isinstance(part, np.ndarray) else part).detach()
        return part.double().reshape(len(part), -1) - self._shift

    def finite(self) -> Tensor:
        """Return for each row whether it is finite."""
        parts = [self[i].isfinite().all(1).cpu() for i in range(0, self.num_rows, _ROWS)]
        return torch.cat(parts) if parts else torch.ones(0, dtype=torch.bool)

    def scale(self) -> float:
        """Return the median distance between different rows."""
        rows = self._rows(slice(0, None, -(-self.num_rows // _MOST)))
        median = float(torch.nn.functional.pdist(rows).median())
        if not median > 0:
            raise InputError("an RBF kernel needs a median distance above 0 between the rows")
        return median
