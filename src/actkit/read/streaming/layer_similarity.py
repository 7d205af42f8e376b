"""How alike all layers are to each other: a matrix of linear CKA from one stream.

Shapes: N rows, W the widths of all sites side by side, L sites.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Self, final

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.run.recording import Rows
from actkit.read._base import JointReading
from actkit.read._paired_sums import Sums, alignment
from actkit.read._sums import added, mergeable, usable


@dataclass(frozen=True, slots=True)
class LayerSimilarityResult:
    """Linear CKA between sites.

    Attributes:
        cka_LL: (L, L) float64 CKA in the order of the sites, 1 on the diagonal; NaN for a site
            that is constant, and where there are fewer than 2 rows (4 if unbiased).
        num_rows: Rows that were used.
        num_nonfinite: Rows that were left out since they hold NaN or infinity at any site.
    """

    cka_LL: Tensor
    num_rows: int
    num_nonfinite: int

    def summary(self) -> dict[str, float]:
        """Return the numbers that fit one line of a report."""
        next_L = self.cka_LL.diagonal(1)
        return {
            "neighbours": float(next_L.mean()) if len(next_L) else nan,
            "first_to_last": float(self.cka_LL[0, -1]) if len(self.cka_LL) else nan,
            "num_rows": self.num_rows,
            "num_nonfinite": self.num_nonfinite,
        }


@method(
    source="Kornblith et al. 2019, arXiv:1905.00414, section 3; "
    "Nguyen et al. 2020, arXiv:2010.15327, section 2"
)
@final
@dataclass(eq=False)
class LayerSimilarity(JointReading):
    """Read the linear CKA of every pair of the sites that it is fed.

    As `cka` for each pair, in one pass over the data and exact for all rows together, where the
    second paper averages over batches. The state is 8 W^2 bytes for sites of W units together,
    three times that while rows are added, and a row costs 2 W^2 operations: eight layers of 576
    units take 0.17 GB, all thirty 2.4 GB, so read every few layers of a wide network.

    Args:
        unbiased: Take HSIC_1, which corrects for the number of rows.
        skip_first: Leave out the first token of every text, whose massive activation would
            outweigh all other tokens in many language models.

    Example:
        >>> early = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> reading = LayerSimilarity()
        >>> rows = Rows.of(torch.ones(1, 4, dtype=torch.bool)).flat()
        >>> reading.update([early, 3 * early.flip(1) + 5], rows)
        >>> reading.result().cka_LL[0, 1].round(decimals=6)
        tensor(1., dtype=torch.float64)
    """

    unbiased: bool = False
    skip_first: bool = True
    _sums: Sums | None = field(default=None, init=False, repr=False)
    _num_nonfinite: int = field(default=0, init=False, repr=False)

    def update(self, acts: Sequence[Tensor], rows: Rows) -> None:
        """Take the (N, ...) activations of all sites and their (N,) rows.

        Raises:
            InputError: Sites differ in their rows, or from those that were read before.
        """
        if {len(act) for act in acts} != {len(rows)}:
            shapes = [tuple(act.shape) for act in acts]
            raise InputError(f"sites must have the same {len(rows)} rows, got shapes {shapes}")
        flat = [act.detach().flatten(1).to(acts[0].device) for act in acts]
        acts_NW, _, bad = usable(torch.cat(flat, 1), rows, skip_first=self.skip_first)
        self._num_nonfinite += bad
        sums = Sums.of(acts_NW, tuple(act.shape[1] for act in flat))
        self._sums = added(self._sums, sums)

    def merge(self, other: Self) -> Self:
        """Take in another reading's rows; return self."""
        mergeable(self, other)
        self._sums = added(self._sums, other._sums)
        self._num_nonfinite += other._num_nonfinite
        return self

    def result(self) -> LayerSimilarityResult:
        """Return the similarities over all rows so far."""
        if self._sums is None:
            none_LL = torch.empty(0, 0, dtype=torch.float64)
            return LayerSimilarityResult(none_LL, 0, self._num_nonfinite)
        cka_LL = alignment(self._sums, self.unbiased).cpu()
        return LayerSimilarityResult(cka_LL, self._sums.num_rows, self._num_nonfinite)
