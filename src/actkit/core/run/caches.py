"""Caches among the arguments and outputs of a network: found by what they are, never by a name.

Passes belong together because they hand on one and the same object. How long a cache says that it
is tells at most whether it is empty, and whether somebody changed it between two passes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

_NO_STATE = ("hidden_state", "attention", "logits", "encoder")
"""Parts of the names of outputs that are tuples of tensors and no state."""


def is_cache(value: Any) -> bool:
    """Say whether an object keeps states between passes, as the caches of transformers do."""
    if isinstance(value, Tensor | nn.Module | type):
        return False
    return any("cache" in kind.__name__.lower() for kind in type(value).__mro__)


def caches_among(values: Any) -> list[Any]:
    """Return the caches among some arguments or outputs."""
    return [v for _, v in _items(values) if is_cache(v)]


def states_among(values: Any) -> list[Any]:
    """Return the lists and tuples of tensors that a network may take back in its next pass."""
    return [
        v
        for name, v in _items(values)
        if _holds_tensors(v) and not any(part in name for part in _NO_STATE)
    ]


def is_empty(cache: Any) -> bool:
    """Say whether a cache holds no token yet."""
    if (length := held(cache)) is not None:
        return length == 0
    told = getattr(cache, "has_previous_state", False)
    return not (told() if callable(told) else told)


def held(cache: Any) -> int | None:
    """Return the length that a cache tells; None where it keeps states and counts no tokens."""
    layers = getattr(cache, "layers", None)
    counts = not layers or any(hasattr(layer, "get_seq_length") for layer in layers)
    if not counts or not hasattr(cache, "get_seq_length"):
        return None
    length = cache.get_seq_length()
    return None if length is None else int(length)


def _items(values: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping):
        yield from ((str(k), v) for k, v in values.items())
    elif isinstance(values, list | tuple):
        yield from (("", v) for v in values)


def _holds_tensors(value: Any, depth: int = 3) -> bool:
    if depth == 0 or not isinstance(value, list | tuple):
        return False
    return any(isinstance(v, Tensor) or _holds_tensors(v, depth - 1) for v in value)
