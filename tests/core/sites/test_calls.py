"""A module that runs several times in one pass, or stands at several paths."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import actkit as ak
from actkit.core.errors import EditError, SiteError
from tests.core import tiny


class Residual(nn.Module):
    """A block as ResNet's: one ReLU runs twice, the second time behind the sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.relu, self.head = nn.ReLU(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.relu(self.conv1(x)))
        scores: Tensor = self.head(self.relu(x + y).mean((2, 3)))
        return scores


IMAGES = tiny.uneven(2, 3, 4, 5)


def test_reading_a_module_that_ran_twice_is_refused_with_its_calls(tmp_path: Path) -> None:
    m = ak.open(Residual())
    reason = r"relu:out ran 2 times in one pass: say which call is meant, relu:out#0, relu:out#1"
    for record in ("relu:out", ["conv1:out", "relu:out"], ["relu:out#0", "relu:out"], "*:out"):
        with pytest.raises(SiteError, match=reason):
            m.run(IMAGES, record=record)
    with pytest.raises(SiteError, match="relu:in ran 2 times"):
        m.run(IMAGES, record="relu:in", logits=True)
    with pytest.raises(SiteError, match=reason):
        m.observe([IMAGES], {"relu:out": []})
    with pytest.raises(SiteError, match=reason):
        m.harvest([IMAGES], ["relu:out"], tmp_path / "store")
    with pytest.raises(SiteError, match=reason):
        m.run(IMAGES, record="relu:out", edits=[ak.scale("relu:out", 2.0)])


def test_each_call_is_read_and_edited_by_its_number() -> None:
    net = Residual()
    m = ak.open(net)
    with torch.no_grad():
        one = net.relu(net.conv1(IMAGES))
        two = net.relu(IMAGES + net.conv2(one))
    rec = m.run(IMAGES, record=["relu:out#0", "relu:out#1"])
    assert torch.equal(rec["relu:out#0"], one) and torch.equal(rec["relu:out#1"], two)
    halved = IMAGES + net.conv2(one / 2)
    both = net.head((net.relu(halved) / 2).mean((2, 3)))
    assert_close(m.run(IMAGES, edits=[ak.scale("relu:out", 0.5)]).output, both)
    first = net.head(net.relu(halved).mean((2, 3)))
    assert_close(m.run(IMAGES, edits=[ak.scale("relu:out#0", 0.5)]).output, first)


def test_only_a_chosen_call_lets_the_run_stop() -> None:
    net = Residual()
    m = ak.open(net)
    calls, remove = tiny.counted(net, "head")
    m.run(IMAGES, record="relu:out#1")
    assert not calls
    m.run(IMAGES, record="conv1:out")
    assert len(calls) == 1  # it could have run again
    m.run(IMAGES, record="conv1:out#0")
    assert len(calls) == 1
    remove()


def shared() -> nn.Sequential:
    torch.manual_seed(6)
    one: Any = nn.Linear(3, 3)
    return nn.Sequential(one, nn.Tanh(), one)


def test_a_module_at_two_paths_says_so() -> None:
    net, x, v = shared(), tiny.uneven(4, 3), torch.tensor([1.0, -2.0, 0.5])
    m = ak.open(net)
    reason = (
        r"2:out ran 2 times in one pass and is also 0: say which call is meant, 2:out#0, 2:out#1"
    )
    with pytest.raises(SiteError, match=reason):
        m.run(x, record="2:out")
    with pytest.raises(EditError, match=reason):
        m.run(x, edits=[ak.add("2:out", v)])
    with pytest.raises(EditError, match=reason), m.edited([ak.add("2:out", v)]):
        net(x)
    for name in ("0", "2"):
        with torch.no_grad():
            want = net[0](torch.tanh(net[0](x))) + v
        assert_close(m.run(x, edits=[ak.add(f"{name}:out#1", v)]).output, want)


def test_two_names_of_a_module_that_runs_once_are_no_matter() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = self.b = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(x)
            return out

    net, x = Twice(), tiny.uneven(4, 3)
    m, v = ak.open(net), torch.tensor([1.0, -2.0])
    for name in ("a", "b"):
        rec = m.run(x, record=f"{name}:out", edits=[ak.add(f"{name}:out", v)])
        assert torch.equal(rec[f"{name}:out"], (net.a(x) + v).detach())


def test_calls_are_counted_anew_in_every_pass() -> None:
    net, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), tiny.uneven(4, 3)
    m = ak.open(net)
    with m.edited([ak.scale("1:out", 2.0)]):
        for _ in range(3):
            net(x)
    assert len(m.observe([x, x, x], {"1:out": []})) == 1
