"""The interfaces of `steer`: fitted on data, a method gives edits of any strength.

Shapes: B batch.
"""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from math import isfinite
from os import PathLike
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from actkit.core.edits.edit import Edit
from actkit.core.edits.files import save_edits
from actkit.core.errors import EditError, InputError, NotFittedError
from actkit.model import Model
from actkit.steer._examples import Examples

Strength = float | Tensor
"""A number, or (B,) numbers, one for each row of the batch."""


class Steerer(ABC):
    """A way to change what a network does by editing its activations.

    Subclasses are dataclasses whose fields are the settings; what `fit` learns is kept in
    attributes that end in an underscore. A method that acts at layers of its user's choice has a
    field `layers`: one, several, or None for its default; `fit` learns all layers at once, so
    `at` changes them without fitting again.

    Attributes:
        grid: Strengths worth trying, increasing; 1 is what the method's paper uses, or as near
            as can be said.
        about_: What it was fitted on; None before `fit`.
    """

    grid: ClassVar[tuple[float, ...]] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
    about_: Mapping[str, Any] | None = None

    def fit(self, model: Model, data: Any) -> Self:
        """Learn from data; the network stays as it is.

        Args:
            model: The network.
            data: What the method learns from; each method says what it takes.

        Returns:
            Itself.

        Raises:
            InputError: The data are not what the method needs.
            SiteError: The network lacks a site that the method needs.
        """
        self.about_ = None
        learnt_from = self._learn(model, data)
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if f.init}  # type: ignore[arg-type]
        settings = {k: v for k, v in chosen.items() if v is None or isinstance(v, _PLAIN)}
        method = inspect.getmodule(type(self))
        name = (method.__name__ if method else type(self).__name__).rpartition(".")[2]
        self.about_ = {"method": name, "settings": settings, "data": learnt_from}
        return self

    def edits(self, strength: Strength = 1.0) -> list[Edit]:
        """Return the edits of a strength.

        Args:
            strength: A number, or (B,) numbers, one for each row of the batch that they will
                run in; 0 changes no bit.

        Raises:
            NotFittedError: `fit` was not called.
            EditError: The strength is not finite, or not a number for each row.
        """
        if self.about_ is None:
            raise NotFittedError(f"{type(self).__name__} must be fitted before it gives edits")
        return self._act(checked_strength(strength))

    def at(self, layers: int | Sequence[int] | None) -> Self:
        """Return the same, fitted as it is, acting at other layers.

        Raises:
            InputError: The method chooses its sites itself.
        """
        if not hasattr(self, "layers"):
            raise InputError(f"{type(self).__name__} chooses its sites itself, got {layers!r}")
        moved = copy.copy(self)
        moved.layers = layers
        if self.about_ is not None:
            plain = layers if layers is None or isinstance(layers, int) else tuple(layers)
            settings = {**self.about_["settings"], "layers": plain}
            moved.about_ = {**self.about_, "settings": settings}
        return moved

    def save(
        self,
        path: str | PathLike[str],
        model: Model,
        strength: float = 1.0,
        **about: Any,
    ) -> None:
        """Write the edits of a strength to one file, with what they were fitted on.

        Args:
            path: As in `ak.save_edits`.
            model: The network that it was fitted on.
            strength: As in `edits`.
            about: Anything else worth keeping, such as `side_effects=` of `ak.steer.effects`.
        """
        own = dict(self.about_ or {})
        save_edits(path, self.edits(strength), model, **own, strength=float(strength), **about)

    @abstractmethod
    def _learn(self, model: Model, data: Any) -> Any:
        """Learn; return what it was learnt from, ready for JSON."""

    @abstractmethod
    def _act(self, strength: Strength) -> list[Edit]:
        """Return the edits of a checked strength."""


class ContrastSteerer(Steerer):
    """A steerer that learns from examples with and without a concept.

    `data` is a list of `ak.data.Contrast` or of pairs, or a mapping of `positive` and `negative`
    inputs; positive strengths move towards the positive side. Those whose settings all have
    defaults take part in the family's comparison of text methods.
    """

    def _learn(self, model: Model, data: Any) -> dict[str, Any]:
        examples = Examples.of(data)
        self._contrast(model, examples)
        return examples.facts()

    @abstractmethod
    def _contrast(self, model: Model, examples: Examples) -> None:
        """Learn from the two sides, neither of which is empty."""


_PLAIN = (bool, int, float, str, tuple, list)


def checked_strength(strength: Any) -> Strength:
    """Return a strength that is a finite number, or finite (B,) numbers."""
    if isinstance(strength, Tensor) and strength.dim():
        if strength.dim() > 1 or not strength.isfinite().all():
            raise EditError(
                f"strengths must be (B,) finite numbers, got shape {tuple(strength.shape)} with "
                f"{int((~strength.isfinite()).sum())} that are not finite"
            )
        return strength if strength.is_floating_point() else strength.to(torch.float32)
    number = strength.item() if isinstance(strength, Tensor) else strength
    if not isinstance(number, int | float) or not isfinite(number):
        raise EditError(f"a strength must be a finite number, got {strength!r}")
    return float(number)


class InputSteering(Protocol):
    """Changes what a network, or a pipeline, is given; its inside stays untouched."""

    def __call__(self, given: Callable[..., Any], /, *others: Callable[..., Any]) -> Any:
        """Return a callable that takes and returns what the one before did."""


class CacheSteerer(ABC):
    """Steers by a key-value cache that the network then continues."""

    @abstractmethod
    def fit(self, model: Model, demonstrations: Any) -> Self:
        """Make the memory from demonstrations; the network stays as it is."""

    @abstractmethod
    def cache(self, batch_size: int = 1) -> Any:
        """Return a cache of its own for some rows."""


class WeightSteerer(ABC):
    """Steers by changed weights, which are applied for a while."""

    @abstractmethod
    def fit(self, model: Model, data: Any) -> Self:
        """Learn the change; the network stays as it is."""

    @abstractmethod
    def applied(self, model: Model) -> AbstractContextManager[None]:
        """Let the network have the changed weights while the context lasts."""
