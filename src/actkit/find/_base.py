"""The interface of `find`: what a network represents, found by running it or in its weights."""

from typing import Any, Protocol

from actkit.model import Model


class Finder(Protocol):
    """Finds directions, neurons or features and says what they stand for.

    The network is left as it is, hooks, flags and weights, after success and after an error.
    """

    def __call__(self, model: Model, /, *data: Any, **settings: Any) -> Any:
        """Return what was found, a frozen dataclass."""
