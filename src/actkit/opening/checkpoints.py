"""Checkpoints: one network at several steps of its training, whatever they come from."""

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from actkit.core.errors import ModelError
from actkit.core.progress import track
from actkit.model import Model
from actkit.opening.open import open as open_model

T = TypeVar("T")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Checkpoint:
    """One step of a training: its number, its name and the opened network."""

    step: int
    name: str
    model: Model


class Checkpoints:
    """Networks in the order of their training, opened one at a time.

    Args:
        source: One of

            - a list of models, modules, or names, folders and Hub ids as `ak.open` takes them;
              their steps are 0, 1, 2, ...
            - a mapping of steps to these;
            - a folder of checkpoint folders (`checkpoint-500`, `step1000`) or, with `into`, of
              files of weights (`.safetensors`, `.pt`); the last number in a name is the step;
            - a Hub id, with `revisions`;
            - a training loop: a generator that yields `(step, network)`, or a function that
              returns one. The network is in `eval()` while it is read, and back in its own mode
              when the loop goes on. Read what you need at once: the loop goes on changing it.
        revisions: Branches or tags of a Hub id.
        into: A network that files of weights fit; a copy of it is loaded, it is not changed.
        settings: Passed to `ak.open`.

    Raises:
        ModelError: There is no checkpoint, or one cannot be opened.

    Example:
        >>> def train():
        ...     net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        ...     for step in range(0, 30, 10):
        ...         yield step, net
        >>> Checkpoints(train).over(lambda m: len(m.sites("0:out")))
        {0: 1, 10: 1, 20: 1}
    """

    def __init__(
        self,
        source: Any,
        *,
        revisions: Sequence[str] = (),
        into: nn.Module | None = None,
        **settings: Any,
    ) -> None:
        """Look at the source; no network is opened yet."""
        self._source, self._revisions = source, revisions
        self._into, self._settings = into, settings
        self._spent = False

    def __iter__(self) -> Iterator[Checkpoint]:
        """Open one network after the other.

        Raises:
            ModelError: A running generator is read for a second time; there is no network.
        """
        if self._spent:
            raise ModelError("a generator can be read once: pass the function that makes it")
        self._spent = isinstance(self._source, Iterator)
        opened: Model | None = None
        for step, name, network in self._steps():
            if opened is None or network is not opened.module:
                opened = self._open(network)
            with _resting(opened.module):
                yield Checkpoint(step, name, opened)
        if opened is None:
            raise ModelError("checkpoints must hold at least one network, got none")

    def over(self, read: Callable[[Model], T]) -> dict[int, T]:
        """Return what `read` says of each network, by step."""
        return {c.step: read(c.model) for c in track(self, "checkpoints")}

    def _steps(self) -> Iterator[tuple[int, str, Any]]:
        """Yield the step, the name and the network (or where it is) of each checkpoint."""
        source = self._source
        if callable(source) and not isinstance(source, nn.Module):
            source = source()
        if isinstance(source, str | PathLike):
            if self._revisions:
                yield from ((_number(r, i), r, r) for i, r in enumerate(self._revisions))
            else:
                yield from _in_folder(Path(source), self._into is not None)
        elif isinstance(source, Iterator):
            yield from ((int(step), f"step {step}", network) for step, network in source)
        elif isinstance(source, Mapping):
            yield from ((int(step), str(step), network) for step, network in source.items())
        elif isinstance(source, Iterable) and not isinstance(source, nn.Module):
            yield from ((i, str(i), network) for i, network in enumerate(source))
        else:
            raise ModelError(
                "checkpoints come from a list, a mapping, a folder, a Hub id with revisions or a "
                f"generator, got {type(source).__name__}"
            )

    def _open(self, network: Any) -> Model:
        if isinstance(network, Model):
            return network
        if isinstance(network, nn.Module):
            return Model(network, **self._settings)
        if self._revisions:
            return open_model(self._source, revision=network, **self._settings)
        if self._into is not None:
            module = copy.deepcopy(self._into)
            _load(module, Path(network))
            return Model(module, **self._settings)
        return open_model(network, **self._settings)


@contextmanager
def _resting(module: nn.Module) -> Iterator[None]:
    """Keep a network in `eval()`; every part goes back to its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _in_folder(folder: Path, files: bool) -> list[tuple[int, str, Path]]:
    """Return the checkpoint folders in a folder, or its files of weights, by their steps."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    if files:
        found = [p for p in found if p.suffix in SUFFIXES]
    else:
        found = [p for p in found if p.is_dir() and (p / "config.json").is_file()]
    if not found:
        what = "files of weights" if files else "folders with a config.json"
        raise ModelError(f"a folder of checkpoints must hold {what}, {folder} holds none")
    return sorted((_number(p.stem if files else p.name, i), p.name, p) for i, p in enumerate(found))


def _number(name: str, default: int) -> int:
    """Return the last number in a name.

    Example:
        >>> _number("checkpoint-500", 0), _number("main", 3)
        (500, 3)
    """
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else default


def _load(module: nn.Module, path: Path) -> None:
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu")
        module.load_state_dict(state)
    except (OSError, RuntimeError, SafetensorError, UnpicklingError, TypeError) as error:
        raise ModelError(f"weights must fit the network, {path}: {error}") from error
