"""The read contract: a statistic that can be updated, merged and finished.

Shapes: N rows, D width, H heads, S keys.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor

from actkit.core.run.recording import Rows


class _Merged(ABC):
    """A statistic that streams.

    Settings are dataclass fields. The state starts empty, grows by `update`, and never holds
    rows, so memory does not grow with their number. `merge` is associative and free of order
    (to rounding); it changes `self` alone. State is kept in float64 or int64 on the CPU, or on
    the activations' device where that is needed for speed.
    """

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """Take in another reading's state, as if its rows had been given here; return self."""

    @abstractmethod
    def result(self) -> Any:
        """Return the finished statistic, a frozen dataclass; the state stays usable."""


class Reading(_Merged):
    """A statistic of one site."""

    @abstractmethod
    def update(self, acts_ND: Tensor, rows: Rows) -> None:
        """Take (N, D) activations and their (N,) rows; at attention sites (N, H, S)."""


class JointReading(_Merged):
    """A statistic of several sites together, for example of how one layer becomes the next.

    `Model.observe` feeds it where the sites are given as a tuple:
    `observe(data, {("resid_pre.0", "resid_post.*"): [reading]})`.
    """

    @abstractmethod
    def update(self, acts: Sequence[Tensor], rows: Rows) -> None:
        """Take each site's (N, ...) activations in the order of the sites; they share (N,) rows."""
