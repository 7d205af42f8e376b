"""Scores: how much each part of a network matters for a task."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from actkit.core.as_json import as_json
from actkit.core.errors import InputError
from actkit.core.writing import write_text
from actkit.show.heat_map import HeatMap, label

if TYPE_CHECKING:
    from actkit.show.graph import Circuit
    from actkit.trace._task import Trial

EDGES = ("receiver", "sender")
"""The axes of scores of edges."""


@dataclass(frozen=True, eq=False)
class Scores:
    """How much each part matters, as one method says.

    Attributes:
        values: float32; one entry for each part, NaN where there is none. For nodes (layers, then
            the axes told apart), for edges (receivers, senders).
        names: The names of the entries along each axis.
        axes: What the axes are: ("layer", "head"), ("layer", "position"), ("receiver", "sender").
        parts: What was asked, in words.
        method: The method's name.
        task: The task's name.
        unit: Of the values.
        report: What the bare network does on the task.
        seconds: How long it took.
        facts: Anything else that a method tells, ready for JSON.
    """

    values: Tensor
    names: Sequence[Sequence[str]]
    axes: tuple[str, ...]
    parts: str = ""
    method: str = ""
    task: str = ""
    unit: str = ""
    report: str = ""
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse names that do not fit."""
        if [len(n) for n in self.names] != list(self.values.shape):
            raise InputError(
                f"names must fit scores of shape {tuple(self.values.shape)}, "
                f"got {[len(n) for n in self.names]}"
            )

    def __repr__(self) -> str:
        """Return what was asked and the largest entries."""
        head = f"{self.method} of {self.task}: {self.parts}, {self.seconds:.1f} s"
        lines = [f"  {name:24} {value:+.4f}" for name, value in self.top(8)]
        return "\n".join(filter(None, [head, self.report, *lines]))

    def top(self, num: int = 10, largest: bool = True) -> list[tuple[str, float]]:
        """Return the parts of largest size with their scores, whatever the sign.

        Args:
            num: How many.
            largest: False for the smallest.
        """
        return [(self.name(i), float(self.values[i])) for i in self.ranked(largest)[:num]]

    def ranked(self, largest: bool = True) -> list[tuple[int, ...]]:
        """Return the indices of all entries by size; those that are NaN are left out."""
        flat = self.values.abs().flatten()
        order = flat.nan_to_num(-1).sort(descending=True, stable=True).indices
        known = [int(i) for i in order if not flat[i].isnan()]
        shape = self.values.shape
        found = [tuple(int(j) for j in torch.unravel_index(torch.tensor(i), shape)) for i in known]
        return found if largest else found[::-1]

    def name(self, index: tuple[int, ...]) -> str:
        """Return the name of one entry: "layer 3, head 5", "position 4 Mary", "mlp 2 -> logits"."""
        if self.axes == EDGES:
            return f"{self.names[1][index[1]]} -> {self.names[0][index[0]]}"
        told = zip(self.axes, self.names, index, strict=True)
        return ", ".join(_spoken(axis, str(names[i]), i) for axis, names, i in told)

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """Return everything as JSON; also write it to a file.

        Raises:
            DataError: The file cannot be written.
        """
        text = as_json({**vars(self), "values": self.values.tolist()})
        if path is not None:
            write_text(path, text)
        return text

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """Return a map of the scores, a figure of plotly's; also write it to a file.

        Colours are signed around zero, entries without a score are grey.

        Args:
            path: A page (.html) that opens offline, or a drawing (.svg).

        Raises:
            InputError: There are more than two axes, or the suffix is another one.
            DataError: The file cannot be written.
        """
        from actkit.show.heat_map import figure, write

        return figure(self._map()) if path is None else write(self._map(), path)

    @overload
    def circuit(self, path: None = None, top: int = 40) -> str: ...
    @overload
    def circuit(self, path: str | PathLike[str], top: int = 40) -> Path: ...
    def circuit(self, path: str | PathLike[str] | None = None, top: int = 40) -> str | Path:
        """Draw the strongest edges as a graph of heads and MLPs, SVG.

        Args:
            path: Of the .svg file.
            top: How many edges.

        Returns:
            The path, or the text if there is none.

        Raises:
            InputError: The scores are of no edges.
            DataError: The file cannot be written.
        """
        from actkit.show.graph import circuit_svg

        return _written(circuit_svg(self._circuit(top)), path)

    @overload
    def to_html(self, path: None = None, top: int = 20) -> str: ...
    @overload
    def to_html(self, path: str | PathLike[str], top: int = 20) -> Path: ...
    def to_html(self, path: str | PathLike[str] | None = None, top: int = 20) -> str | Path:
        """Make one page that opens offline: report, picture, strongest parts and settings.

        Args:
            path: Where to write it.
            top: How many parts are listed; a circuit draws twice as many edges.

        Returns:
            The path, or the text if there is none.

        Raises:
            DataError: The file cannot be written.
        """
        from actkit.trace._scores._page import page

        drawn = self._circuit(2 * top) if self.axes == EDGES else self._map()
        facts = {**self._about(), "seconds": f"{self.seconds:.1f}", **self.facts}
        return _written(page(drawn, self.top(top), self.unit, self.report, facts), path)

    @overload
    def to_neuronpedia(
        self, path: None = None, trial: "Trial | None" = None, top: int = 200, slug: str = "actkit"
    ) -> str: ...
    @overload
    def to_neuronpedia(
        self,
        path: str | PathLike[str],
        trial: "Trial | None" = None,
        top: int = 200,
        slug: str = "actkit",
    ) -> Path: ...
    def to_neuronpedia(
        self,
        path: str | PathLike[str] | None = None,
        trial: "Trial | None" = None,
        top: int = 200,
        slug: str = "actkit",
    ) -> str | Path:
        """Write the strongest edges as the JSON of an attribution graph, as Neuronpedia shows.

        Each head and MLP is one node at the last token, for all positions together; what enters
        a head's queries, keys and values is added up; the input is an embedding node at the first
        token, and the answer the target logit.

        Args:
            path: Where to write it.
            trial: What was scored, for the tokens of its first prompt and the answer.
            top: How many edges.
            slug: The graph's short name.

        Returns:
            The path, or the text if there is none.

        Raises:
            InputError: The scores are of no edges.
            DataError: The file cannot be written.
        """
        from actkit.trace._scores._neuronpedia import graph_json

        about = {"method": self.method, "task": self.task, "unit": self.unit}
        return _written(graph_json(self._circuit(top), trial, slug, about), path)

    def _map(self) -> HeatMap:
        """Return the scores as a map."""
        title, subtitle = self._titles()
        return HeatMap(self.values, self.names, self.axes, title, subtitle, self.parts)

    def _circuit(self, top: int) -> "Circuit":
        """Return the strongest edges, zeros left out.

        Raises:
            InputError: The scores are not of edges, or `top` is no positive number.
        """
        from actkit.show.graph import Circuit, Edge, split

        if self.axes != EDGES:
            raise InputError(f"a circuit needs scores with axes {EDGES}, got {self.axes}")
        if top < 1:
            raise InputError(f"a circuit needs at least one edge, got top={top}")
        receivers, senders = self.names
        edges = [
            Edge(senders[sender], *split(receivers[receiver]), score)
            for receiver, sender in self.ranked()[:top]
            if (score := float(self.values[receiver, sender]))
        ]
        return Circuit(edges, receivers, senders, *self._titles())

    def _titles(self) -> tuple[str, str]:
        """Return what was scored on what, and who scored it in which unit."""
        parts = self.parts or "scores"
        if self.axes != EDGES and " by " not in parts:
            parts = f"{parts} by {' and '.join(self.axes)}"
        told = f"{self.task}: {parts}" if self.task else parts
        scored = ", ".join(filter(None, [self.method, self.unit or "score"]))
        return told[:1].upper() + told[1:], scored

    def _about(self) -> dict[str, str]:
        """Return what was asked and what was found, in words."""
        sizes = (f"{len(n)} {a}s" for a, n in zip(self.axes, self.names, strict=True))
        known = int(self.values.isfinite().sum())
        return {
            "method": self.method,
            "task": self.task,
            "parts": self.parts,
            "unit": self.unit,
            "axes": " x ".join(sizes),
            "entries": f"{known} of {self.values.numel()} have a score",
        }


def _spoken(axis: str, name: str, index: int) -> str:
    """Return one axis of an entry; a token says where it stands, since a word may come twice."""
    if axis != "position" or name == str(index):
        return f"{axis} {name}"
    return f"{axis} {index} {label(name)}"


def _written(text: str, path: str | PathLike[str] | None) -> str | Path:
    return text if path is None else write_text(path, text)
