"""Networks in training mode: said once, and nothing of them moves."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.testing import assert_close

import actkit as ak
from actkit.core.errors import ModeWarning
from actkit.model import Model
from tests.core import tiny
from tests.core.sweep.test_observe import Kept


class Normed(nn.Module):
    """Layers that keep statistics while they train."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.conv, self.batch = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
        self.instance = nn.InstanceNorm2d(5, track_running_stats=True)
        self.head = spectral_norm(nn.Linear(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.instance(self.batch(self.conv(x)))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


X = tiny.uneven(6, 3, 7, 5)
RUNS: dict[str, Callable[[Model, Path], object]] = {
    "run": lambda m, _: m.run(X, record="batch:out"),
    "whole run": lambda m, _: m.run(X),
    "gradients": lambda m, _: m.run(X, record="conv:out", grad=True),
    "observe": lambda m, _: m.observe([X, X + 1], {"batch:out": [Kept()]}),
    "harvest": lambda m, to: m.harvest([X], "batch:out", to),
}


@pytest.mark.parametrize("run", RUNS)
def test_statistics_stay_and_the_mode_is_the_users(run: str, tmp_path: Path) -> None:
    net = Normed()
    m, before = Model(net), copy.deepcopy(net.state_dict())
    buffers = {name: (id(b), b._version) for name, b in net.named_buffers()}
    with pytest.warns(ModeWarning, match="Normed is in training mode: 3 of its modules"):
        RUNS[run](m, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RUNS[run](m, tmp_path)  # it is said once
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert {name: (id(b), b._version) for name, b in net.named_buffers()} == buffers
    assert all(own.training for own in net.modules())


def test_numbers_are_those_of_training_mode() -> None:
    net, twin = Normed(), Normed()
    with pytest.warns(ModeWarning):
        rec = Model(net).run(X, record="batch:out", logits=True)
    conv = twin.conv(X)
    mean, var = conv.mean((0, 2, 3)), conv.var((0, 2, 3), unbiased=False)
    want = (conv - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]
    assert_close(rec["batch:out"], want, rtol=1e-4, atol=1e-5)
    assert_close(rec.logits, twin(X))


def test_gradients_pass_through_the_statistics_of_the_batch() -> None:
    net, twin = Normed(), Normed()
    with pytest.warns(ModeWarning):
        rec = Model(net).run(X, record="conv:out", logits=True, grad=True)
    rec.logits.square().sum().backward()  # type: ignore[no-untyped-call]
    twin(X).square().sum().backward()
    assert twin.conv.weight.grad is not None and net.conv.weight.grad is not None
    assert_close(net.conv.weight.grad, twin.conv.weight.grad)


def test_an_error_leaves_the_statistics_too() -> None:
    net = Normed()
    before = copy.deepcopy(net.state_dict())
    with pytest.warns(ModeWarning), pytest.raises(RuntimeError):
        Model(net).run(X[:, :2], record="batch:out")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


class Dropping(nn.Module):
    """Drops out by a function, as many networks of transformers do."""

    attention_dropout = 0.0

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.attention_dropout = rate

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.attention_dropout, self.training)


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.2)), True),
        (nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.2)).eval(), False),
        (nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.0), nn.LayerNorm(2)), False),
        (nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.2).eval()), False),
        (nn.InstanceNorm1d(4), False),
        (Dropping(0.5), True),
        (Dropping(0.0), False),
    ],
    ids=str,
)
def test_only_what_changes_numbers_is_said(net: nn.Module, said: bool) -> None:
    m, x = Model(net), tiny.uneven(4, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        m.run(x)
    assert [w.category for w in caught] == [ModeWarning] * said


def test_a_loop_of_the_users_trains_as_ever() -> None:
    net, twin = Normed(), Normed()
    with Model(net).edited([ak.scale("conv:out", 1.5)]):
        net(X)
    handle = twin.conv.register_forward_hook(lambda *a: a[2] * 1.5)
    twin(X)
    handle.remove()
    assert_close(net.state_dict(), twin.state_dict())
