"""The bytes that autograd keeps, against counts by hand."""

import weakref

import pytest
import torch
from torch import Tensor, nn

from actkit.core.run.saved_tensors import SavedMeter
from tests.core import tiny


def saved_by(module: nn.Module, x: Tensor) -> int:
    with SavedMeter(module) as meter:
        module(x)
    return meter.num_bytes


def test_bytes_are_those_of_the_tensors_that_are_kept() -> None:
    x = tiny.uneven(5, 7).requires_grad_()
    assert saved_by(nn.Tanh(), x) == 5 * 7 * 4  # its result
    assert saved_by(nn.Linear(7, 3), x) == 5 * 7 * 4  # its input; the weight is kept anyway
    assert saved_by(nn.Linear(7, 3, dtype=torch.float64), x.double()) == 5 * 7 * 8
    with SavedMeter() as meter:
        nn.Linear(7, 3)(x)
    assert meter.num_bytes == (5 * 7 + 3 * 7) * 4


def test_what_is_kept_twice_counts_once() -> None:
    x = tiny.uneven(5, 7).requires_grad_()
    with SavedMeter() as meter:
        y = x.exp()
        z = y * y.view(7, 5).view(5, 7)
    assert meter.num_bytes == 5 * 7 * 4
    assert z.requires_grad


def test_nothing_is_kept_without_gradients() -> None:
    x = tiny.uneven(5, 7)
    with SavedMeter() as meter, torch.no_grad():
        nn.Sequential(nn.Linear(7, 3), nn.Tanh())(x)
    assert meter.num_bytes == 0
    frozen = nn.Linear(7, 3).requires_grad_(False)
    assert saved_by(frozen, x) == 0


def test_a_new_tensor_at_an_old_address_counts() -> None:
    """A kept tensor that is freed and made again must not look like the first."""
    with SavedMeter() as meter:
        for _ in range(30):
            torch.ones(1000, requires_grad=True).exp()
    assert meter.num_bytes == 30 * 4000


def test_what_was_kept_is_freed_with_its_graph() -> None:
    x = tiny.uneven(5, 7).requires_grad_()
    with SavedMeter():
        y = x.exp()
        kept = weakref.ref(y)
    del y
    assert kept() is None


def test_second_gradients_pass() -> None:
    x = tiny.uneven(5, 7, dtype=torch.float64).requires_grad_()
    with SavedMeter():
        (first,) = torch.autograd.grad(x.exp().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), x)
    torch.testing.assert_close(second, 2 * (2 * x.detach()).exp())


def test_gradients_are_the_same() -> None:
    net, x = nn.Sequential(nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 2)), tiny.uneven(5, 7)
    net(x).pow(2).sum().backward()
    want = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    with SavedMeter(net) as meter:
        loss = net(x).pow(2).sum()
    loss.backward()
    assert meter.num_bytes > 0
    for p, w in zip(net.parameters(), want, strict=True):
        assert p.grad is not None and torch.equal(p.grad, w)


def test_the_meter_stops_after_its_context_and_after_an_error() -> None:
    x = tiny.uneven(5, 7).requires_grad_()
    meter = SavedMeter()
    with pytest.raises(ZeroDivisionError), meter:
        1 / 0  # noqa: B018
    x.exp()
    assert meter.num_bytes == 0


def test_meters_nest() -> None:
    x = tiny.uneven(5, 7).requires_grad_()
    with SavedMeter() as outer:
        y = x.exp()
        with SavedMeter() as inner:
            y.tanh()
    assert inner.num_bytes == 5 * 7 * 4
    assert outer.num_bytes == 5 * 7 * 4  # autograd asks the innermost only
