"""What every method promises, whatever its chapter; a chapter's contract test derives from it.

The inputs are those of the methods' own examples (`tests/examples.py`), so a new method is under
its contract as soon as its file is there. A chapter adds what its own interface promises.
"""

import inspect
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from actkit.catalog import ROOT, Entry, methods
from actkit.core.errors import ActkitError
from tests import contract
from tests.core import tiny
from tests.examples import RANDOM, Call, calls, copied

TAKES = {
    "Analysis": "Model",
    "Finder": "Model",
    "ModelStatistic": "Model",
    "TrainingStatistic": "Checkpoints",
    "TrainingAnalysis": "Checkpoints",
    "Experiment": "Callable",
    "InputSteering": "Callable",
}
"""What the first parameter of a function says that it is, by interface."""
RUNS_USERS_TRAINING = {"Experiment"}
"""Interfaces whose methods call a training of the user's, which may draw at random."""
REFUSES_WHAT_IS_NOT_FINITE = {"Statistic", "Similarity"}
"""Interfaces whose methods take nothing but data, of which every number counts."""
CHANGES_WEIGHTS = {"Trainer"}
"""Interfaces whose methods are there to change a network."""


class Contract:
    """The contract of one chapter, over all its methods."""

    chapter: ClassVar[str]

    def __init_subclass__(cls, chapter: str) -> None:
        """Run every test over the methods of a chapter, "read/similarity"."""
        cls.chapter = chapter
        own = entries(chapter)
        cls.pytestmark = pytest.mark.parametrize("entry", own, ids=lambda e: e.name)  # type: ignore[attr-defined]

    def test_it_stands_under_an_interface_and_keeps_to_it(self, entry: Entry) -> None:
        interface: Any = getattr(home(entry), entry.interface)
        made = entry.load()
        if isinstance(made, type):
            assert issubclass(made, interface)
            return
        assert made.__interface__ is interface
        signature = inspect.signature(made)
        first = next(iter(signature.parameters.values()))
        assert first.kind in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD)
        assert TAKES.get(entry.interface, "") in str(first.annotation)
        assert signature.return_annotation is not inspect.Signature.empty

    def test_its_example_calls_it(self, entry: Entry) -> None:
        assert calls(entry), f"the example of {entry.name} must call it, as its users will"

    def test_what_it_is_given_stays_as_it_is(self, entry: Entry) -> None:
        allowed = {RANDOM} if entry.interface in RUNS_USERS_TRAINING else set()
        for call in calls(entry):
            left = {c for c in call.changed if entry.interface not in CHANGES_WEIGHTS}
            assert left <= allowed, f"{call.name} changed {', '.join(left)}"

    def test_it_says_the_same_again(self, entry: Entry) -> None:
        """Also where the global random state is another one."""
        for call in last_of_each(entry):
            seeds = (0, 0) if entry.interface in RUNS_USERS_TRAINING else (0, 1)
            one, other = (said(call, seed) for seed in seeds)
            contract.check_same(comparable(one), comparable(other))

    def test_data_that_are_not_finite_are_refused(self, entry: Entry) -> None:
        if entry.interface not in REFUSES_WHAT_IS_NOT_FINITE:
            return  # networks and streams say themselves what they leave out
        for call in last_of_each(entry):
            for index, given in enumerate(call.args):
                if isinstance(given, torch.Tensor) and given.is_floating_point() and given.dim():
                    spoiled = given.clone()
                    spoiled.view(-1)[-1] = torch.nan
                    args = [*call.args[:index], spoiled, *call.args[index + 1 :]]
                    with pytest.raises(ActkitError):
                        call.call(*copied(args), **copied(dict(call.kwargs)))

    def test_an_error_inside_the_network_leaves_nothing_behind(self, entry: Entry) -> None:
        for call in last_of_each(entry):
            for net in {id(n): n for n in call.networks()}.values():
                if not runs(call, net):
                    continue
                with tiny.untouched(net), broken(net), pytest.raises(ZeroDivisionError):
                    call.again()

    def test_what_it_returns_can_be_kept(self, entry: Entry) -> None:
        for call in last_of_each(entry):
            if callable(call.result) or hasattr(call.result, "__exit__") or has_code(call.result):
                continue  # a function, a context that ends, or settings that hold the user's code
            again = pickle.loads(pickle.dumps(call.result))
            contract.check_same(comparable(again), comparable(call.result))


def entries(chapter: str) -> list[Entry]:
    """Return the methods of a chapter, "read/similarity"."""
    family, name = chapter.split("/")
    return [entry for entry in methods(family) if entry.chapter == name]


def home(entry: Entry) -> Any:
    """Return the file of the family that holds a method's interface."""
    files = sorted((ROOT / entry.family).glob("_[!_]*.py"))
    found = (import_module(f"actkit.{entry.family}.{path.stem}") for path in files)
    return next(file for file in found if hasattr(file, entry.interface))


def last_of_each(entry: Entry) -> list[Call]:
    """Return the last call in a method's example of each of its functions."""
    return list({call.name: call for call in calls(entry)}.values())


def said(call: Call, seed: int) -> Any:
    """Return what a call says where the global generators stand elsewhere."""
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        return call.again()
    finally:
        torch.set_rng_state(before)


def comparable(value: Any) -> Any:
    """Return what two results are compared by: fields of objects, leaves of containers."""
    if isinstance(value, nn.Module):
        return dict(value.state_dict())
    if is_dataclass(value) and not isinstance(value, type):
        return {k: comparable(v) for k, v in vars_of(value).items()}
    if isinstance(value, list | tuple):
        return [comparable(v) for v in value]
    if isinstance(value, dict):
        return {str(k): comparable(v) for k, v in value.items()}
    if isinstance(value, torch.Tensor):
        return value.detach()
    plain = isinstance(value, str | int | float | bool | complex) or value is None
    return value if plain else type(value).__name__


def vars_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an object, with or without a dict; times are left out."""
    names = [*getattr(value, "__dict__", {}), *getattr(type(value), "__dataclass_fields__", {})]
    return {name: getattr(value, name) for name in names if name != "seconds"}


def has_code(value: Any) -> bool:
    """Say whether an attribute of an object is a function."""
    return any(inspect.isfunction(v) for v in getattr(value, "__dict__", {}).values())


def runs(call: Call, net: nn.Module) -> bool:
    """Say whether a call runs a network."""
    seen: list[int] = []
    handle = net.register_forward_pre_hook(lambda *_: seen.append(1))
    try:
        result = call.again()
        if hasattr(result, "__enter__"):
            with result:
                pass
    finally:
        handle.remove()
    return bool(seen)


@contextmanager
def broken(net: nn.Module) -> Iterator[None]:
    """Let a network fail when it is run."""

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    handle = net.register_forward_pre_hook(fail, prepend=True)
    try:
        yield
    finally:
        handle.remove()
