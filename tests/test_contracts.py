"""No method stands outside of a contract, and the contract finds what it is for."""

import random
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from actkit.catalog import FAMILIES, ROOT, interfaces, methods
from actkit.model import Model
from tests.chapters import Contract, comparable, entries, runs
from tests.contract import check_same
from tests.examples import Call, copied, noted

TESTS = Path(__file__).parent
ALL = methods()
CHAPTERS = sorted({f"{e.family}/{e.chapter}" for e in ALL})


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_has_its_contract(chapter: str) -> None:
    file = import_module(f"tests.{chapter.replace('/', '.')}.test_contract")
    own = [c for c in vars(file).values() if isinstance(c, type) and issubclass(c, Contract)]
    assert [c.chapter for c in own if c is not Contract] == [chapter]
    assert entries(chapter)


def test_every_method_is_in_a_chapter_and_under_an_interface() -> None:
    assert sum(len(entries(chapter)) for chapter in CHAPTERS) == len(ALL) > 100
    assert [e.name for e in ALL if e.interface not in interfaces(ROOT / e.family)] == []


def test_interfaces_are_a_handful() -> None:
    for family in FAMILIES:
        used = {e.interface for e in methods(family)}
        assert len(used) <= 9, f"{family} has {len(used)} interfaces: {sorted(used)}"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_does_not_grow_too_large(chapter: str) -> None:
    assert len(entries(chapter)) <= 15


def in_place(x: torch.Tensor) -> None:
    x += 1


def draws(_: torch.Tensor) -> None:
    torch.rand(1)


def draws_from_numpy(_: torch.Tensor) -> None:
    np.random.rand()


def draws_from_python(_: torch.Tensor) -> None:
    random.random()


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (in_place, "values of shape"),
        (draws, "random state"),
        (draws_from_numpy, "random state"),
        (draws_from_python, "random state"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_changed_in_data_is_found(act: Callable[[Any], None], said: str) -> None:
    given = [torch.ones(2, 3), {"more": torch.zeros(1)}]
    with noted(given) as changed:
        act(given[0])
    assert [said in text for text in changed] == [True]
    with noted(given) as changed:
        torch.ones(2) + 1
    assert changed == []


def left_a_hook(net: nn.Module) -> None:
    net.register_forward_hook(lambda *_: None)


def turned_to_training(net: nn.Module) -> None:
    net.train()


def trained(net: nn.Module) -> None:
    next(net.parameters()).data.add_(1)


@pytest.mark.parametrize("act", [left_a_hook, turned_to_training, trained])
def test_what_is_changed_in_a_network_is_found(act: Callable[[nn.Module], None]) -> None:
    net = nn.Sequential(nn.Linear(2, 2)).eval()
    with noted([Model(net), 3]) as changed:
        act(net)
    assert len(changed) == 1


def test_a_run_of_the_network_is_seen() -> None:
    net = nn.Linear(2, 2)

    def call(run: bool) -> Call:
        made: Callable[[Any], Any] = net if run else copied
        return Call("f", None, lambda _, x: made(x), (net, torch.ones(2)), {}, None, ())

    assert runs(call(True), net)
    assert not runs(call(False), net)


def test_results_are_told_apart() -> None:
    layer = nn.Linear(2, 2)
    other = copied(torch.eye(2))
    with pytest.raises(AssertionError):
        check_same(comparable({"a": torch.eye(2)}), comparable({"a": other + 1}))
    with pytest.raises(AssertionError):
        check_same(comparable(layer), comparable(nn.Linear(2, 2)))
    check_same(comparable([layer, {"a": other}]), comparable([layer, {"a": torch.eye(2)}]))
