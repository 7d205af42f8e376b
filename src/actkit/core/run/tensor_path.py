"""Where in a module's arguments and outputs a tensor sits: found, read and put back."""

from collections.abc import Mapping
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from actkit.core.errors import SiteError

TensorPath = tuple[int | str, ...]
"""The way to a tensor inside nested tuples, mappings and outputs."""


def arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int | str, Any]:
    """Return all arguments under their numbers and names."""
    arguments: dict[int | str, Any] = dict(enumerate(args))
    arguments.update(kwargs)
    return arguments


def main_input(path: str, given: Mapping[int | str, Any]) -> TensorPath:
    """Return the way to a module's first input that is a tensor."""
    names = [k for k, v in given.items() if isinstance(v, Tensor)]
    if not names:
        raise SiteError(f"{path}:in needs an input that is a tensor, got {list(given)}")
    named = "hidden_states" in names and not isinstance(names[0], int)
    return ("hidden_states" if named else names[0],)


def main_output(output: Any) -> TensorPath:
    """Return the way to the main tensor of what a module returned: itself, or its first item."""
    if isinstance(output, Tensor):
        return ()
    if isinstance(output, tuple | list) and output and not isinstance(output, PackedSequence):
        return (0, *main_output(output[0]))
    named = output if isinstance(output, Mapping) else _fields(output)
    return tuple(k for k, v in named.items() if isinstance(v, Tensor))[:1]


def get(values: Any, chain: TensorPath, where: str) -> Tensor:
    """Return the tensor at the end of the chain; `where` names it in errors."""
    for item in chain:
        if isinstance(values, Tensor):  # an index would take a row of it, not an item
            raise SiteError(f"{where} has no item {item!r}, it is a tensor: leave .{item} out")
        try:
            values = _item(values, item)
        except (AttributeError, IndexError, TypeError, KeyError) as error:
            raise SiteError(f"{where} has no item {item!r} in {type(values).__name__}") from error
        if isinstance(values, PackedSequence):
            break
    if isinstance(values, PackedSequence):
        raise SiteError(
            f"{where} is a PackedSequence, whose rows belong to several samples each: give the "
            "network padded tensors, or record a module that returns a tensor"
        )
    if not isinstance(values, Tensor):
        raise SiteError(f"{where} must be a tensor to be read, got {type(values).__name__}")
    return values


def _item(values: Any, item: int | str) -> Any:
    key = _key(values, item)
    by_name = isinstance(key, str) and not isinstance(values, Mapping)
    return getattr(values, str(key)) if by_name else values[key]


def _key(values: Any, item: int | str) -> int | str:
    """Return the name of the i-th value of a mapping, as transformers' outputs count them."""
    if not isinstance(item, int) or not isinstance(values, Mapping) or item in values:
        return item
    if any(isinstance(key, int) for key in values):  # arguments have numbers
        return item
    name: int | str = list(values)[item]
    return name


def _fields(values: Any) -> dict[str, Any]:
    """Return a dataclass's fields by name; none of what is no dataclass."""
    if not is_dataclass(values):
        return {}
    return {f.name: getattr(values, f.name) for f in fields(values)}


def put(values: Any, chain: TensorPath, new: Tensor) -> Any:
    """Return a copy of the values with the item at the end of the chain replaced."""
    if not chain:
        return new
    item, rest = _key(values, chain[0]), chain[1:]
    inner = put(_item(values, item), rest, new)
    if isinstance(values, tuple):
        old = _item(values, item)
        at = item if isinstance(item, int) else [v is old for v in values].index(True)
        items = [*values[:at], inner, *values[at + 1 :]]
        return type(values)(*items) if hasattr(values, "_fields") else type(values)(items)
    changed = copy(values)
    if isinstance(item, str) and not isinstance(values, Mapping):
        object.__setattr__(changed, item, inner)  # a copy of a frozen dataclass is ours to write
    else:
        changed[item] = inner
    return changed
