"""The interfaces of `trace`: localizers, which score parts, and analyses of other kinds."""

import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from actkit.model import Model
from actkit.opening.checkpoints import Checkpoints
from actkit.trace._parts import Parts, as_parts, filled
from actkit.trace._scores import Scores
from actkit.trace._task import Task, Trial, as_trial


class Localizer(ABC):
    """A way to score the parts of a network by how much they matter for a task.

    Subclasses are dataclasses whose fields are the settings. Scores are signed: positive parts
    carry the metric from the corrupt prompts to the clean ones, in units of the metric or as a
    share of the gap between the two (`unit`).

    Attributes:
        unit: Of the scores.
        kinds: Of "heads", "mlp" and "resid" the parts that it can be asked for.
        quick: Whether a language model takes seconds; those that take many minutes are compared
            only where they are asked for by name.
    """

    unit: ClassVar[str] = "share of the gap"
    kinds: ClassVar[tuple[str, ...]] = ("heads", "mlp", "resid")
    quick: ClassVar[bool] = True
    parts: str | Parts

    def __call__(self, model: Model, task: "Task | Trial") -> Scores:
        """Return the scores of every part; the network stays as it is.

        Args:
            model: The network.
            task: Pairs of prompts with a metric, or the trial that `task.on(model)` gave.

        Raises:
            InputError: The pairs, answers or positions do not fit the network.
            SiteError: The network lacks what is asked.

        Warns:
            TaskWarning: The network does not do the task.
        """
        trial = self._trial(model, task)
        started = time.perf_counter()
        parts = as_parts(self.parts)
        found = self._score(trial, parts)
        shape = parts.shape(model, trial.length if "position" in parts.axes else 0)
        return Scores(
            filled(found, shape), part_names(trial, parts), ("layer", *parts.axes), str(parts),
            **self._told(trial), seconds=time.perf_counter() - started,
        )  # fmt: skip

    @abstractmethod
    def _score(self, trial: Trial, parts: Parts) -> Tensor | list[Tensor]:
        """Return one number for each part, in the order of `parts.each`, in any shape."""

    def _trial(self, model: Model, task: Task | Trial) -> Trial:
        """Return the trial, warned about if the network does not do the task."""
        trial = as_trial(model, task)
        trial.check()
        return trial

    def _told(self, trial: Trial) -> dict[str, Any]:
        module = inspect.getmodule(type(self))
        name = (module.__name__ if module else type(self).__name__).rpartition(".")[2]
        told = {"method": name, "task": trial.task.name, "report": trial.report}
        return {**told, "unit": self.unit}


def part_names(trial: Trial, parts: Parts) -> list[Sequence[str]]:
    """Return the labels of the scores' axes; tokens for positions, where all pairs share them."""
    shape = parts.shape(trial.model, trial.length if "position" in parts.axes else 0)
    names: list[Sequence[str]] = [[str(i) for i in range(n)] for n in shape]
    if "position" in parts.axes:
        tokens = torch.as_tensor(trial.clean.tokens)
        shared = (tokens == tokens[0]).all(0)[trial.valid("clean")[0]].tolist()
        words = zip(trial.words, shared, strict=True)
        own = [word if same or len(trial) == 1 else f"({word})" for word, same in words]
        names[1 + parts.axes.index("position")] = own
    return names


class Analysis(Protocol):
    """What one network does on some prompts: where, how, and through what.

    The network is left as it is, hooks, flags and weights, after success and after an error.
    """

    def __call__(self, model: Model, /, *asked: Any, **settings: Any) -> Any:
        """Return what was found."""


class CircuitMeasure(Protocol):
    """What can be said of circuits, or of what finds them, once they are there."""

    def __call__(self, circuits: Any, /, *others: Any, **settings: Any) -> Any:
        """Return the numbers."""


class TrainingAnalysis(Protocol):
    """How what a network does comes about over its training."""

    def __call__(self, checkpoints: Checkpoints, /, *asked: Any, **settings: Any) -> Any:
        """Return what was found over the steps."""


class TrainingExperiment(Protocol):
    """Trains small networks on data of a known kind and watches mechanisms come about."""

    def __call__(self, data: Any, /, **settings: Any) -> Any:
        """Return what was seen at each step; the same seed gives the same."""


class Trainer(ABC):
    """Trains a given network, which is changed: that is what it is for."""

    @abstractmethod
    def fit(self, model: Model, *data: Any) -> Any:
        """Train; return how well what was wanted is there."""


class WeightEditor(ABC):
    """Changes what a network knows by small changes of its weights."""

    @abstractmethod
    def fit(self, model: Model, data: Any) -> Self:
        """Learn what changes need to know; the network stays as it is."""

    @abstractmethod
    def edit(self, model: Model, wanted: Any) -> Any:
        """Return the change that one wish needs; the network stays as it is."""


class Intervention:
    """Makes edits that hold parts of a network at chosen values, in runs and while it trains."""
