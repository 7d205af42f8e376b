"""Where in a module's arguments and outputs a tensor sits: found, read and put back."""

from collections.abc import Mapping
from copy import copy
from typing import Any

from torch import Tensor

from actkit.core.errors import SiteError

Chain = tuple[int | str, ...]
"""The way to a tensor inside nested tuples, mappings and outputs."""


def slots(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int | str, Any]:
    """Return all arguments under their numbers and names."""
    slots: dict[int | str, Any] = dict(enumerate(args))
    slots.update(kwargs)
    return slots


def main_input(path: str, given: Mapping[int | str, Any]) -> Chain:
    """Return the way to a module's first input that is a tensor."""
    names = [k for k, v in given.items() if isinstance(v, Tensor)]
    if not names:
        raise SiteError(f"{path}:in needs an input that is a tensor, got {list(given)}")
    named = "hidden_states" in names and not isinstance(names[0], int)
    return ("hidden_states" if named else names[0],)


def main_output(output: Any) -> Chain:
    """Return the way to the main tensor of what a module returned: itself, or its first item."""
    if isinstance(output, tuple | list) and output:
        return (0, *main_output(output[0]))
    if isinstance(output, Mapping):
        return tuple(k for k, v in output.items() if isinstance(v, Tensor))[:1]
    return ()


def get(values: Any, chain: Chain, where: str) -> Tensor:
    """Return the tensor at the end of the chain; `where` names it in errors."""
    for item in chain:
        try:
            values = _item(values, item)
        except (AttributeError, IndexError, TypeError, KeyError) as error:
            raise SiteError(f"{where} has no item {item!r} in {type(values).__name__}") from error
    if not isinstance(values, Tensor):
        raise SiteError(f"{where} must be a tensor to be read, got {type(values).__name__}")
    return values


def _item(values: Any, item: int | str) -> Any:
    by_name = isinstance(item, str) and not isinstance(values, Mapping)
    return getattr(values, str(item)) if by_name else values[item]


def put(values: Any, chain: Chain, new: Tensor) -> Any:
    """Return a copy of the values with the item at the end of the chain replaced."""
    if not chain:
        return new
    item, rest = chain[0], chain[1:]
    inner = put(_item(values, item), rest, new)
    if isinstance(values, tuple):
        old = _item(values, item)
        at = item if isinstance(item, int) else [v is old for v in values].index(True)
        items = [*values[:at], inner, *values[at + 1 :]]
        return type(values)(*items) if hasattr(values, "_fields") else type(values)(items)
    changed = copy(values)
    if isinstance(item, str) and not isinstance(values, Mapping):
        setattr(changed, item, inner)
    else:
        changed[item] = inner
    return changed
