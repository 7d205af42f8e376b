"""The contract of a family's `protocol.py`: one task, one budget, one set of metrics for all."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from actkit.core.errors import InputError
from actkit.model import Model


@dataclass(frozen=True)
class Measure:
    """What is measured of every method.

    Attributes:
        name: In plain words.
        unit: Of the values; "" for shares and counts.
        better: Which way is better; "neither" for what is only reported.
        log: Whether it needs a logarithmic axis.
    """

    name: str
    unit: str = ""
    better: Literal["lower", "higher", "neither"] = "lower"
    log: bool = False

    def __str__(self) -> str:
        """Return the name with its unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


Measurement = Callable[[Any], Mapping[str, float]]
"""Takes one method, returns one value for the name of each metric."""


class Comparison(ABC):
    """A family's fair comparison; each family's `protocol.py` has one, named `PROTOCOL`.

    A protocol keeps nothing between calls: the next task, network or seed may be another one of
    the same name. What the methods of one seed share lies in the round that is made for them.

    Attributes:
        metrics: What is measured; the first two are the axes of the Pareto plot.
        tasks: Names of the bundled tasks, the default first.
        on_model: Whether methods are compared on a network; else the protocol plants its data.
    """

    metrics: ClassVar[tuple[Measure, ...]]
    tasks: ClassVar[tuple[str, ...]]
    on_model: ClassVar[bool] = False

    @abstractmethod
    def methods(self, task: Any) -> Mapping[str, Any]:
        """Return what takes part in a task by default, by name; the controls too."""

    @abstractmethod
    def measure(self, method: Any, task: Any, model: Model | None, seed: int) -> dict[str, float]:
        """Run one method with one seed; return one value for the name of each metric."""

    def round(self, task: Any, model: Model | None, seed: int) -> Measurement:
        """Return what measures each method with one seed.

        It lives as long as a comparison, and can be pickled; where methods are held against
        something that is costly, a protocol gives a round that computes it once.
        """
        return partial(self.measure, task=task, model=model, seed=seed)

    def chosen(self, task: Any, methods: Any = None) -> dict[str, Any]:
        """Return the methods to compare.

        Args:
            task: One of `tasks`, or an object that the family takes for one.
            methods: Names of those that take part, or a mapping with a user's own beside them
                (`{"mine": fn, "cka": None}`, None for one of the family's); all if None.

        Raises:
            InputError: An unknown task or method, or no method at all.
        """
        if isinstance(task, str) and task not in self.tasks:
            raise InputError(f"task must be one of {', '.join(self.tasks)}, got {task!r}")
        known = self.methods(task)
        asked = dict.fromkeys(known) if methods is None else methods
        asked = asked if isinstance(asked, Mapping) else dict.fromkeys(asked)
        if missing := [name for name, own in asked.items() if own is None and name not in known]:
            raise InputError(
                f"methods for this task are {', '.join(known)}, got {', '.join(missing)}"
            )
        if not asked:
            raise InputError("a comparison needs at least one method, got none")
        return {name: known[name] if own is None else own for name, own in asked.items()}
