"""What the examples of docstrings call: small inputs of every method, which contracts then use.

A method's example is run once, and each call of the method in it is kept with what it was given,
so that a new method is under its contract by the example that it has to have anyway.
"""

import copy
import doctest
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from actkit.catalog import Entry
from actkit.core.run.runner import Runner
from tests import contract
from tests.core import tiny

RANDOM = "a global random state"


@dataclass(frozen=True)
class Call:
    """One call of a method, or of one of its public functions if it is a class.

    Attributes:
        name: Of the function.
        owner: The object whose function it is, as it was before the call; None for a function.
        call: Makes it again, with what it was given.
        args: What it was given by position, as it was before the call.
        kwargs: What it was given by name.
        result: What it returned.
        changed: What of its inputs it left otherwise than it found it, in words.
    """

    name: str
    owner: Any
    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    changed: tuple[str, ...]

    def again(self) -> Any:
        """Make the call once more, on copies of what it was given."""
        own = () if self.owner is None else (copied(self.owner),)
        return self.call(*own, *copied(self.args), **copied(dict(self.kwargs)))

    def networks(self) -> list[nn.Module]:
        """Return the networks that it was given."""
        return networks_in([self.args, self.kwargs, vars(self.owner) if self.owner else ()])


@functools.cache
def calls(entry: Entry) -> tuple[Call, ...]:
    """Run a method's example; return the calls of the method in it, in the order of their ends.

    Where a random state moved it is run again: libraries draw when they are imported.
    """
    found = _run(entry)
    return _run(entry) if any(RANDOM in call.changed for call in found) else found


def _run(entry: Entry) -> tuple[Call, ...]:
    module, made = import_module(entry.module), entry.load()
    found: list[Call] = []
    names = dict(vars(module))
    with ExitStack() as stack:
        if isinstance(made, type):
            for name, function in functions_of(made):
                watched = _watched(function, name, found, bound=True)
                stack.enter_context(mock.patch.object(made, name, watched))
        else:
            names[entry.object] = _watched(made, entry.object, found, bound=False)
        for example in doctest.DocTestParser().get_examples(made.__doc__ or ""):
            exec(compile(example.source, f"<example of {entry.name}>", "exec"), names)
    return tuple(found)


def functions_of(made: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the public functions that a class of actkit has, its own and of its interface."""
    kept = {"fit", "forward", "__call__"}
    for base in reversed(made.__mro__):
        if base.__module__.startswith("actkit.") and base is not object:
            for name, function in vars(base).items():
                plain = isinstance(function, type(functions_of))
                if plain and (name in kept or not name.startswith("_")):
                    yield name, getattr(made, name)


def _watched(
    function: Callable[..., Any], name: str, found: list[Call], bound: bool
) -> Callable[..., Any]:
    """Return the function, which keeps each call of it that is not inside another one."""
    busy: list[bool] = []

    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        if busy:
            return function(*args, **kwargs)
        owner, given = (copied(args[0]), args[1:]) if bound else (None, args)
        kept, named = copied(given), copied(kwargs)
        busy.append(True)
        try:
            with noted([given, kwargs]) as changed:
                result = function(*args, **kwargs)
        finally:
            busy.pop()
        found.append(Call(name, owner, function, kept, named, result, tuple(changed)))
        return result

    return watched


@contextmanager
def noted(given: Any) -> Iterator[list[str]]:
    """Note what a call leaves otherwise than it found it: tensors, networks, random states."""
    changed: list[str] = []
    before, networks = copied(given), networks_in(given)
    states = [tiny.state(net) for net in networks]
    weights = [{k: v.clone() for k, v in net.state_dict().items()} for net in networks]
    random = contract.random_states()
    yield changed
    if contract.random_states() != random:
        changed.append(RANDOM)
    for net, state, own in zip(networks, states, weights, strict=True):
        if tiny.state(net) != state:
            changed.append(f"hooks or attributes of {type(net).__name__}")
        if any(not torch.equal(v, own[k]) for k, v in net.state_dict().items()):
            changed.append(f"weights of {type(net).__name__}")
    for one, other in zip(arrays_in(before), arrays_in(given), strict=True):
        if not torch.equal(torch.as_tensor(one), torch.as_tensor(other)):
            changed.append(f"values of shape {tuple(one.shape)}")


def copied(value: Any) -> Any:
    """Copy what holds numbers; networks, functions and what opens them are passed on."""
    if isinstance(value, Tensor):
        return value if value.requires_grad else value.clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (list, tuple, set):
        return type(value)(copied(v) for v in value)
    if type(value) is dict:
        return {k: copied(v) for k, v in value.items()}
    if isinstance(value, nn.Module | Runner | str | bytes) or callable(value):
        return value
    return copy.copy(value)


def arrays_in(value: Any) -> Iterator[Any]:
    """Yield the tensors and arrays in sequences and mappings."""
    if isinstance(value, Tensor | np.ndarray):
        yield value
    elif isinstance(value, Mapping):
        yield from arrays_in(list(value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for item in value:
            yield from arrays_in(item)


def networks_in(value: Any) -> list[nn.Module]:
    """Return the networks in sequences and mappings."""
    if isinstance(value, Runner):
        return [value.module]
    if isinstance(value, nn.Module):
        return [value]
    if isinstance(value, Mapping):
        return networks_in(list(value.values()))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [net for item in value for net in networks_in(item)]
    return []
