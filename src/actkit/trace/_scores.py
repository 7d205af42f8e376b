"""Scores: how much each part of a network matters for a task."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actkit.core.as_json import as_json
from actkit.core.errors import InputError


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
        """Return the name of one entry: "layer 3, head 5", "mlp 2 -> logits"."""
        if self.axes == ("receiver", "sender"):
            return f"{self.names[1][index[1]]} -> {self.names[0][index[0]]}"
        told = zip(self.axes, self.names, index, strict=True)
        return ", ".join(f"{axis} {names[i]}" for axis, names, i in told)

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """Return everything as JSON; also write it to a file."""
        text = as_json({**vars(self), "values": self.values.tolist()})
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text
