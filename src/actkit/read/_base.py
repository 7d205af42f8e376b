"""The interfaces of `read`: what streams, and what is read off data, networks and trainings.

Shapes: N rows, D width, H heads, S keys.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

from torch import Tensor

from actkit.core.run.recording import Rows
from actkit.model import Model
from actkit.opening.checkpoints import Checkpoints


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


class Similarity(Protocol):
    """How alike two sets of activations of the same N rows are.

    Sides are (N, D) and (N, E) tensors or arrays, streamed sources where the method says so. Rows
    that come in another order on both sides change nothing. Sides of unequal rows, and rows that
    are not finite, raise `InputError`.
    """

    def __call__(self, x: Any, y: Any, /, **settings: Any) -> float:
        """Return the similarity, or the distance where the method is one."""


class Statistic(Protocol):
    """Something that follows from tensors alone: activations, labels, eigenvalues, tables.

    What is given stays as it is; no global random state is used. The answer is a number or a
    frozen dataclass.
    """

    def __call__(self, given: Any, /, *others: Any, **settings: Any) -> Any:
        """Return the statistic."""


class ModelStatistic(Protocol):
    """What is read off one network, from its weights or by running it.

    The network is left as it is, hooks, flags and weights, after success and after an error.
    """

    def __call__(self, model: Model, /, *data: Any, **settings: Any) -> Any:
        """Return the statistic, a frozen dataclass or one for each site."""


class TrainingStatistic(Protocol):
    """What is read off a network at several steps of its training."""

    def __call__(self, checkpoints: Checkpoints, /, *data: Any, **settings: Any) -> Any:
        """Return the statistic over training, a frozen dataclass."""


class Experiment(Protocol):
    """What trainings show that are run here, one for each setting of the experiment.

    Trainings are the user's function; what it returns or yields is a network.
    """

    def __call__(self, train: Callable[..., Any], /, *design: Any, **settings: Any) -> Any:
        """Return what the trainings have shown."""


class Forecast(ABC):
    """Tells of a network what it has not been measured on."""

    @abstractmethod
    def fit(self, features_LF: Tensor, targets: Any) -> Self:
        """Learn from layers, or networks, whose answer is known."""

    @abstractmethod
    def predict(self, features_LF: Tensor) -> Any:
        """Return the answer for each row of features."""


class Law:
    """Numbers that follow from the settings in closed form; its methods take and return numbers."""
