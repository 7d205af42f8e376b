"""Modules that stand in for others, and come back."""

import pytest
import torch
from torch import nn

from actkit.core.errors import SiteError
from actkit.core.run.replace import replaced
from actkit.model import Model
from tests.core import tiny


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 2)), nn.ReLU())


def test_stand_ins_act_and_go() -> None:
    own, x = net(), tiny.uneven(5, 3)
    first, last, order = own[0], own[1][1], [n for n, _ in own.named_modules()]  # type: ignore[index]
    mine, other = nn.Linear(3, 4), nn.Linear(4, 2, bias=False)
    want = other(torch.tanh(mine(x))).relu()
    with tiny.untouched(own):
        with Model(own).replaced({"0": mine, "1.1": other}):
            assert own[0] is mine and own[1][1] is other  # type: ignore[index]
            assert torch.equal(own(x), want)
            assert [n for n, _ in own.named_modules()] == order
        assert own[0] is first and own[1][1] is last  # type: ignore[index]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_they_go_after_an_error(error: type[BaseException]) -> None:
    own = net()
    with tiny.untouched(own), pytest.raises(error), replaced(own, {"0": nn.Identity()}):
        raise error


def test_they_nest() -> None:
    own = net()
    first, one, two = own[0], nn.Linear(3, 4), nn.Linear(3, 4)
    with replaced(own, {"0": one}):
        with replaced(own, {"0": two}):
            assert own[0] is two
        assert own[0] is one
    assert own[0] is first


def test_unknown_paths_swap_nothing() -> None:
    own = net()
    with tiny.untouched(own):
        with pytest.raises(SiteError, match=r"no module at '1\.7' to replace"):
            replaced(own, {"0": nn.Identity(), "1.7": nn.Identity()}).__enter__()
        with pytest.raises(SiteError, match=r"must not lie in one another, got 1, 1\.1"):
            replaced(own, {"1.1": nn.Identity(), "1": nn.Identity()}).__enter__()
        with pytest.raises(SiteError, match="only submodules can be replaced"):
            replaced(own, {"0": nn.Identity(), "": nn.Identity()}).__enter__()


def test_a_stand_in_that_is_no_module_leaves_all_as_it_was() -> None:
    own = net()
    with tiny.untouched(own), pytest.raises(TypeError):
        replaced(own, {"1.1": nn.Identity(), "0": "x"}).__enter__()  # type: ignore[dict-item]
