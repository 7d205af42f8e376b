"""The interfaces of `shrink`: smaller copies of a network, and runs that leave parts out."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import nn

from actkit.model import Model


class Narrower(Protocol):
    """Makes a smaller network of a given one, which stays as it is."""

    def __call__(self, network: nn.Sequential, /, *data: Any, **settings: Any) -> Any:
        """Return the smaller network and what was left out."""


class Skipper(ABC):
    """Runs a network without parts that its inputs can do without."""

    @abstractmethod
    def skipping(self, model: Model, prompts: Any) -> AbstractContextManager[Any]:
        """Leave the parts out while the context lasts; afterwards the network is as before."""
