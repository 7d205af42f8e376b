"""The read contract: a statistic that can be updated, merged and finished.

Shapes: N rows, D width.
"""

from abc import ABC, abstractmethod
from typing import Any, Self

from torch import Tensor

from actkit.core.recording import Rows


class Reading(ABC):
    """A statistic of activations that streams.

    Settings are dataclass fields. The state starts empty, grows by `update`, and never holds
    rows, so memory does not grow with their number. `merge` is associative and free of order
    (to rounding); it changes `self` alone. State is kept in float64 or int64 on the CPU, or on
    the activations' device where that is needed for speed.
    """

    @abstractmethod
    def update(self, acts_ND: Tensor, rows: Rows) -> None:
        """Take (N, D) activations and their (N,) rows; at attention sites (N, H, S)."""

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """Take in another reading's state, as if its rows had been given here; return self."""

    @abstractmethod
    def result(self) -> Any:
        """Return the finished statistic, a frozen dataclass; the state stays usable."""
