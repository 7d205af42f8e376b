"""End-to-end transport: the closed optimum, two layers that share a cause, sparsity."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.steer.maps.linear_act import LinearAcT
from actkit.steer.maps.lineas import LinEAS, shrunk, wasserstein
from tests._evidence import Evidence
from tests.core import tiny

PAIRS = [(f"w{i} w{2 * i + 1} w{40 + i}", f"w{i} w{2 * i + 2} w{60 + i} w8") for i in range(1, 10)]


def normal(num: int, mean: Any, std: Any, seed: int) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    mean_D: Tensor = torch.as_tensor(mean).double()
    raw_ND = torch.randn(num, len(mean_D), generator=gen, dtype=torch.float64)
    return mean_D + torch.as_tensor(std).double() * raw_ND


def sides(negative: Tensor, positive: Tensor) -> dict[str, list[Tensor]]:
    return {"negative": [negative], "positive": [positive]}


@pytest.mark.paper("lineas")
def test_one_unit_reaches_the_closed_optimum(evidence: Evidence) -> None:
    x, y = normal(256, [0.0], [1.0], 0), normal(256, [3.0], [2.0], 1)
    eas = LinEAS(sites="0:out", num_steps=400, learning_rate=0.1, batch_size=256)
    found = eas.fit(ak.open(nn.Sequential(nn.Identity())), sides(x, y)).maps_["0:out"]
    slope, bias = np.polyfit(np.sort(x[:, 0]), np.sort(y[:, 0]), 1)
    for name, got, best in (("slope", found.slope, slope), ("bias", found.bias, bias)):
        off = abs(got.item() - best)
        evidence(f"{name} off the least squares on sorted samples", measured=off, at_most=1e-2)


def test_the_distance_is_that_of_sorted_or_repeated_samples() -> None:
    x, y = normal(6, [1.0, -4.0], [1.0, 3.0], 0), normal(9, [2.0, 0.0], [2.0, 1.0], 1)
    again = (x.repeat(3, 1).sort(0).values - y.repeat(2, 1).sort(0).values) ** 2
    torch.testing.assert_close(wasserstein(x, y), again.mean(0).sum())


@pytest.mark.parametrize("by", [0.05, 0.3, 2.0])
def test_the_proximal_point_is_the_minimum(by: float) -> None:
    """Against a general minimiser, in float64."""
    start = normal(2, [0.5, -1.0, 2.0], [1.0, 0.5, 1.0], 0)

    def objective(flat: Any) -> float:
        p = torch.from_numpy(flat).reshape(2, 3)
        lasso = p.abs().sum() + 6**0.5 * p.norm()
        return float(((p - start) ** 2).sum() / 2 + by * lasso)

    found = scipy.optimize.minimize(
        objective, start.numpy().ravel(), method="Powell", options={"xtol": 1e-9, "ftol": 1e-14}
    )
    assert objective(shrunk(start, by).numpy().ravel()) <= found.fun + 1e-9
    assert (by == 2.0) == (not shrunk(start, by).any())


@pytest.mark.paper("lineas")
def test_layers_that_share_a_cause_are_not_shifted_twice(evidence: Evidence) -> None:
    """What moves layer 1 to the target moves layer 2 as well; maps fitted apart move it again."""
    net = nn.Sequential(nn.Identity(), nn.Linear(3, 3)).double()
    gen = torch.Generator().manual_seed(0)
    net[1].weight.data = torch.eye(3) + 0.3 * torch.rand(3, 3, generator=gen).double()
    model, sites = ak.open(net), ["0:out", "1:out"]
    data = sides(
        normal(301, [4.0, -7.0, 1.0], [1.0, 0.3, 2.0], 0),
        normal(257, [-3.0, 1.0, 2.0], [2.0, 1.0, 2.0], 1),
    )
    aim = model.run(data["positive"][0], sites)

    def left(steerer: Any) -> list[float]:
        rec = model.run(data["negative"][0], sites, steerer.fit(model, data).edits(1.0))
        return [wasserstein(rec[site], aim[site]).item() for site in sites]

    apart = left(LinearAcT(sites=sites, causal=False, support=None))
    settings: dict[str, Any] = {"num_steps": 400, "learning_rate": 0.1, "batch_size": 301}
    together = left(LinEAS(sites=sites, **settings))
    ratio = apart[1] / together[1]
    evidence("error at layer 2, maps fitted apart over together", measured=ratio, at_least=2.0)
    saved = 1 - sum(together) / sum(apart)
    evidence("total distance saved by training together (share)", measured=saved, at_least=0.3)


@pytest.mark.paper("lineas")
def test_sparsity_selects_the_units_that_shifted(evidence: Evidence) -> None:
    """5 of 100 units shift; the more sparsity, the fewer units are moved, down to none."""
    planted = torch.tensor([3, 17, 40, 71, 99])
    mean = torch.zeros(100)
    mean[planted] = torch.tensor([1.5, -2.0, 3.0, -1.5, 2.0])
    data = sides(normal(301, torch.zeros(100), torch.ones(100), 0), normal(257, mean, [1.0], 1))
    model = ak.open(nn.Sequential(nn.Identity()))
    active: dict[float, Tensor] = {}
    for sparsity in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        settings: dict[str, Any] = {"num_steps": 100, "learning_rate": 0.2, "batch_size": 301}
        eas = LinEAS(sites="0:out", sparsity=sparsity, **settings).fit(model, data)
        found = eas.maps_["0:out"]
        active[sparsity] = ((found.slope != 1) | (found.bias != 0)).nonzero()[:, 0]
    counts = [len(own) for own in active.values()]
    rises = sum(late > early for early, late in pairwise(counts))
    evidence("rises of the number of active units along the path", measured=rises, at_most=0)
    evidence("active units at its start", measured=counts[0], equals=100, tolerance=0)
    evidence("active units at its end", measured=counts[-1], equals=0, tolerance=0)
    chosen = [own for own in active.values() if len(own)][-1]
    hits = int(torch.isin(chosen, planted).sum())
    evidence("precision of the sparsest choice", measured=hits / len(chosen), at_least=0.9)
    evidence("recall of the sparsest choice", measured=hits / 5, at_least=0.9)


def test_the_network_collects_no_gradients_and_the_loss_falls() -> None:
    model = tiny.model()
    assert all(p.requires_grad for p in model.module.parameters())
    eas = LinEAS(num_steps=30).fit(model, PAIRS)
    assert all(p.grad is None for p in model.module.parameters())
    assert eas.losses_[-1] < 0.8 * eas.losses_[0]
    assert not any(t.requires_grad for own in eas.maps_.values() for t in own.tensors().values())


def test_the_seed_decides_the_draws() -> None:
    fits = [LinEAS(seed=s, batch_size=4).fit(tiny.model(), PAIRS).losses_ for s in (0, 0, 1)]
    assert fits[0] == fits[1] != fits[2]


def test_images_and_networks_of_several_inputs() -> None:
    gen = torch.Generator().manual_seed(0)
    x, y = (torch.randn(9, 3, 6, 5, generator=gen) + c for c in (0.0, 1.5))
    model = ak.open(tiny.Cnn().eval())
    eas = LinEAS(sites="conv1:out", num_steps=60, learning_rate=0.1).fit(model, sides(x, y))
    assert eas.losses_[-1] < 0.2 * eas.losses_[0]
    way = (
        model.run(x, "conv1:out", eas.edits())["conv1:out"] - model.run(x, "conv1:out")["conv1:out"]
    )
    torch.testing.assert_close(way, way[..., :1, :1].expand_as(way), rtol=1e-4, atol=1e-5)
    pairs: Any = {"negative": [(x[:, 0, 0], x[:, 1, 0])], "positive": [(y[:, 0, 0], y[:, 1, 0])]}
    both = Model(Summed())
    eas = LinEAS(sites="inner:out", num_steps=60, learning_rate=0.1).fit(both, pairs)
    assert eas.losses_[-1] < 0.2 * eas.losses_[0]


class Summed(nn.Module):
    """Takes two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return (N, D) of two (N, D)."""
        out: Tensor = self.inner(a + 2 * b)
        return out


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_steps": 0}, "needs steps.* got 0, 32"),
        ({"batch_size": 1}, "batches of 2"),
        ({"learning_rate": float("nan")}, "positive rate"),
        ({"sparsity": -1.0}, "sparsity.* got -1.0"),
    ],
    ids=lambda given: str(given),
)
def test_bad_settings_are_refused(settings: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        LinEAS(**settings)


@pytest.mark.parametrize(
    ("side", "said"), [("negative", "loss.* got nan"), ("positive", "got 2 NaN")]
)
def test_states_that_are_not_finite_are_refused(side: str, said: str) -> None:
    data = sides(normal(5, [1.0, 2.0], [1.0, 3.0], 0), normal(6, [1.0, 2.0], [1.0, 3.0], 1))
    data[side][0][1:3, 0] = torch.nan
    with pytest.raises(InputError, match=said):
        LinEAS(sites="0:out").fit(ak.open(nn.Sequential(nn.Identity())), data)
