"""What steers a conversation: a method that was fitted here, or edits of a file."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import actkit as ak
from actkit.catalog import entry
from actkit.cli._output import make_folder
from actkit.core.edits.edit import Edit
from actkit.core.edits.files import edit_facts
from actkit.core.errors import InputError
from actkit.model import Model


class Steering(ABC):
    """What steers a conversation: what is answered, shown, moved and saved is this one thing."""

    @abstractmethod
    def edits(self, strength: Any) -> Sequence[Edit]:
        """Return the edits of a strength: a number, or one for each row."""

    @abstractmethod
    def save(self, path: Path, strength: float) -> str:
        """Write the edits of a strength to a file; return what to say about it."""

    def at(self, layer: int) -> "Steering":
        """Return the same at another layer.

        Raises:
            InputError: It cannot be chosen here.
        """
        raise InputError(f"what steers here chooses its layers itself, got {layer}")

    @abstractmethod
    def __str__(self) -> str:
        """Say what steers."""


def method_of(name: str | None, needs_layers: bool = False) -> Callable[[], ak.steer.Steerer]:
    """Return what makes a method that learns from texts and needs no settings."""
    name = "caa" if name is None else name
    if (family := entry(name).family) != "steer":
        raise InputError(f"steering needs a method of the family steer, {name!r} is of {family}")
    found: Any = ak.get(name)
    if not (isinstance(found, type) and issubclass(found, ak.steer.Steerer)):
        raise InputError(f"{name} is not fitted on texts; call it from Python")
    settings = inspect.signature(found).parameters
    needed = [n for n, s in settings.items() if s.default is inspect.Parameter.empty]
    if needed:
        raise InputError(f"{name} needs {', '.join(needed)}; call it from Python")
    if needs_layers and "layers" not in settings:
        raise InputError(f"{name} chooses its layers itself, got --layer")
    made: Callable[[], ak.steer.Steerer] = found
    return made


@dataclass(frozen=True)
class Fitted(Steering):
    """A method that was fitted here.

    Attributes:
        model: The network.
        steerer: The method; its `about_` says where it acts.
        task: What side effects are measured on.
    """

    model: Model
    steerer: ak.steer.Steerer
    task: ak.steer.Task

    def edits(self, strength: Any) -> Sequence[Edit]:
        """Return the method's edits."""
        return self.steerer.edits(strength)

    def save(self, path: Path, strength: float) -> str:
        """Measure what the edits do, and write it with them."""
        make_folder(path.parent, "saving")
        effects = ak.steer.effects(self.model, self.edits(strength), self.task)
        self.steerer.save(path, self.model, strength, side_effects=effects.to_dict())
        return f"wrote {path} at strength {strength:g}, side effects measured: {self}"

    def at(self, layer: int) -> "Fitted":
        """Return the method at another layer, fitted as it is."""
        return replace(self, steerer=self.steerer.at(layer))

    def __str__(self) -> str:
        about = self.steerer.about_ or {}
        layers = about.get("settings", {}).get("layers")
        return f"{about.get('method')}{'' if layers is None else f' at layer {layers}'}"


@dataclass(frozen=True)
class LoadedEdits(Steering):
    """Edits of a file, at another strength than its own if that is asked.

    Attributes:
        model: The network.
        path: The file.
        given: Its edits.
        own: The strength that they have.
    """

    model: Model
    path: Path
    given: Sequence[Edit]
    own: float

    def edits(self, strength: Any) -> Sequence[Edit]:
        """Return the file's edits at another strength."""
        return ak.steer.rescaled(self.given, strength / self.own)

    def save(self, path: Path, strength: float) -> str:
        """Write them anew, with where they come from."""
        make_folder(path.parent, "saving")
        about = {"source": str(self.path), "strength": strength}
        ak.save_edits(path, self.edits(strength), self.model, **about)
        return f"wrote {path} at strength {strength:g}"

    def __str__(self) -> str:
        return str(self.path)


def fit(
    made: Callable[[], ak.steer.Steerer],
    make_task: Callable[[Model], ak.steer.Task],
    layer: int | None,
    strength: float | None,
    model: Model,
) -> tuple[Steering, float]:
    """Fit and, where the strength is not given, tune; return what steers, and how much."""
    task, steerer = make_task(model), made()
    if strength is None:
        layers = None if layer is None else [layer]
        found = ak.steer.tune(model, steerer, task, layers=layers)
        return Fitted(model, found.steerer, task), found.chosen.strength
    steerer = steerer.fit(model, task.examples)
    steerer = steerer if layer is None else steerer.at(layer)
    return Fitted(model, steerer, task), strength


def load(path: Path, strength: float | None) -> Callable[[Model], tuple[Steering, float]]:
    """Read a file before the network is opened; return what fits it to one."""
    if path.suffix == ".gguf":
        vectors = ak.steer.load_vectors(path)
        return lambda model: (
            LoadedEdits(model, path, vectors, 1.0),
            1.0 if strength is None else strength,
        )
    own = float((edit_facts(path).get("settings") or {}).get("strength", 1.0)) or 1.0

    def fitted(model: Model) -> tuple[Steering, float]:
        loaded = LoadedEdits(model, path, ak.load_edits(path, model), own)
        return loaded, own if strength is None else strength

    return fitted
