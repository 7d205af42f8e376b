"""What an engine is told, and what an object tells it: settings, and how to travel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from actkit.core.errors import EngineError


@runtime_checkable
class Travels(Protocol):
    """What reaches another process by being made there again, not by its own bytes."""

    def travels_as(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return a function and the arguments with which it makes an equal object."""


@dataclass(frozen=True)
class Ray:
    """The engine `ray` with settings: workers, processes of their own anywhere in a cluster.

    No network travels: each worker opens it anew, by `Model.opener`, and compares the weights'
    hash with that of the network it stands for. What does go to the workers is pickled once: give
    data as `Samples`, as a function that opens them, or in memory if they are small; and absolute
    paths.

    Args:
        num: How many workers; None for as many as the cluster has room for.
        num_cpus: Of each worker; its torch uses as many threads.
        num_gpus: Of each worker; it sees only these, the first as "cuda".
        num_restarts: How often a worker that died, alone or with its machine, is begun again
            before the run fails; -1 for always.

    Raises:
        EngineError: A number is below its least.
    """

    num: int | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    num_restarts: int = 4

    def __post_init__(self) -> None:
        """Check the numbers."""
        if (self.num is not None and self.num < 1) or self.num_cpus <= 0 or self.num_gpus < 0:
            raise EngineError(
                "there must be at least one worker with more than 0 CPUs, "
                f"got {self.num} with {self.num_cpus} CPUs and {self.num_gpus} GPUs"
            )
