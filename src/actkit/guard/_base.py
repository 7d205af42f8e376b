"""The interface of `guard`: detectors, fitted on examples, score what comes."""

from abc import ABC, abstractmethod
from typing import Any, Self


class Detector(ABC):
    """Tells inputs, or runs, that are as they should be from others."""

    @abstractmethod
    def fit(self, data: Any, labels: Any) -> Self:
        """Learn from examples; what is given stays as it is."""

    @abstractmethod
    def score(self, data: Any) -> Any:
        """Return a score for each, higher where something is wrong."""
