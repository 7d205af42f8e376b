"""Transport of single units: closed forms, exactness, causal estimation, and SmolLM2."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.steer._states import states
from actkit.steer.maps._transport import Transport, coupled
from actkit.steer.maps.linear_act import LinearAcT, affine
from tests._evidence import Evidence
from tests.core import tiny

PAIRS = [(f"w{i} w{2 * i + 1} w{40 + i}", f"w{i} w{2 * i + 2} w{60 + i} w8") for i in range(1, 10)]


def normal(num: int, mean: list[float], std: list[float], seed: int) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    raw = torch.randn(num, len(mean), generator=gen, dtype=torch.float64)
    return torch.tensor(mean) + torch.tensor(std) * raw


def through(*modules: nn.Module) -> Model:
    return ak.open(nn.Sequential(*modules))


def sides(negative: Tensor, positive: Tensor) -> dict[str, list[Tensor]]:
    return {"negative": [negative], "positive": [positive]}


def w1(a: Tensor, b: Tensor) -> Tensor:
    """Return the distance of each unit, by SciPy."""
    found = [wasserstein_distance(a[:, j].numpy(), b[:, j].numpy()) for j in range(a.shape[1])]
    return torch.tensor(np.array(found))


@pytest.mark.paper("controlling-language-diffusion-models")
@pytest.mark.parametrize("kind", ["linear", "gaussian"])
def test_normal_to_normal(kind: Any, evidence: Evidence) -> None:
    mu1, s1, mu2, s2 = [4.0, -7.0, 0.5], [1.0, 0.3, 5.0], [-3.0, -1.0, 2.0], [2.0, 0.9, 1.5]
    source, target = normal(100_000, mu1, s1, 0), normal(100_000, mu2, s2, 1)
    model = through(nn.Identity())
    act = LinearAcT(sites="0:out", kind=kind).fit(model, sides(source, target))
    slope = torch.tensor(s2) / torch.tensor(s1)
    bias = torch.tensor(mu2) - slope * torch.tensor(mu1)
    found = act.maps_["0:out"]
    off = torch.maximum((found.slope / slope - 1).abs(), (found.bias / bias - 1).abs()).max()
    evidence(f"{kind}: slope and bias off by (share)", measured=off, at_most=0.02)
    bare = w1(source, target)
    left = {s: w1(model.run(source, edits=act.edits(s)).output, target) / bare for s in (0.5, 1.0)}
    evidence(f"{kind}: W1 left at strength 1 (share)", measured=left[1.0].max(), at_most=0.03)
    for least in (left[0.5].min(), left[0.5].max()):
        evidence(
            f"{kind}: W1 left at strength 0.5 (share)", measured=least, equals=0.5, tolerance=0.05
        )


def test_least_squares_on_sorted_samples() -> None:
    a, b = normal(41, [3.0, -1.0], [0.5, 4.0], 0), normal(41, [-2.0, 9.0], [2.0, 1.0], 1) ** 3
    slope, bias = affine(a, b)
    for j in range(2):
        expected = np.polyfit(np.sort(a[:, j]), np.sort(b[:, j]), 1)
        np.testing.assert_allclose([slope[j], bias[j]], expected, rtol=1e-9)


def test_uneven_sides_are_coupled_as_if_each_row_were_repeated() -> None:
    a, b = normal(6, [3.0, -1.0], [0.5, 4.0], 0), normal(9, [-2.0, 9.0], [2.0, 1.0], 1)
    alike = affine(a.repeat(3, 1), b.repeat(2, 1))
    torch.testing.assert_close(affine(a, b), alike, rtol=1e-9, atol=1e-9)
    joined_a, joined_b, share = coupled(a, b)
    cost = (share * (joined_a - joined_b).abs()).sum(0)
    torch.testing.assert_close(cost, w1(a, b), rtol=1e-9, atol=1e-9)
    assert len(share) == 12  # 6 + 9 ends, of which 3 are shared


def test_units_that_do_not_vary_are_shifted() -> None:
    a, b = torch.full((5, 1), 2.0), normal(5, [1.0], [3.0], 0).float()
    for kind in ("linear", "gaussian", "mean"):
        slope, bias = affine(a, b, kind)
        assert slope.item() == 1
        torch.testing.assert_close(bias, b.mean(0) - 2)


@pytest.mark.paper("controlling-language-diffusion-models")
def test_mean_transport_is_addition(evidence: Evidence) -> None:
    model, site = tiny.model(), "resid_post.1"
    act = LinearAcT(sites=site, kind="mean", support=None).fit(model, PAIRS)
    plus, minus = (states(model, side, site, "mean")[site] for side in zip(*PAIRS, strict=True))
    torch.testing.assert_close(act.maps_[site].bias, (plus.double() - minus).mean(0).float())
    added = ak.add(site, act.maps_[site].bias, 0.7)
    one, other = (
        model.run(tiny.PROMPTS, edits=e, logits=True).logits for e in (act.edits(0.7), [added])
    )
    assert one is not None and other is not None
    far = (one - other).abs().max()
    evidence("logits less those of adding the mean difference", measured=far, at_most=0.0)


@pytest.mark.paper("controlling-language-diffusion-models")
@pytest.mark.parametrize("support", [1.0, 0.8])
def test_values_outside_the_support_stay(support: float, evidence: Evidence) -> None:
    source, target = normal(401, [4.0, -7.0], [1.0, 0.3], 0), normal(301, [-3.0, 1.0], [2.0, 1], 1)
    model = through(nn.Identity())
    act = LinearAcT(sites="0:out", support=support).fit(model, sides(source, target))
    x = normal(999, [4.0, -7.0], [3.0, 0.9], 2)
    moved = model.run(x, edits=act.edits(1.0)).output
    lowest, highest = (
        torch.from_numpy(np.quantile(source.numpy(), q, axis=0))
        for q in ((1 - support) / 2, (1 + support) / 2)
    )
    inside = (x >= lowest) & (x <= highest)
    assert 0.1 < inside.float().mean() < 0.9
    stayed = (moved - x)[~inside].abs().max()
    evidence(f"change outside a support of {support:g}", measured=stayed, at_most=0.0)
    slope, bias = affine(source, target)
    torch.testing.assert_close(moved[inside], (slope * x + bias)[inside])


class Curved(nn.Module):
    """A unit's neighbours flow into it, bent."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, D) of (N, D)."""
        return x + 0.5 * x.roll(1, -1) + torch.tanh(x)


@pytest.mark.paper("controlling-language-diffusion-models")
def test_causal_estimation_does_not_shift_twice(evidence: Evidence) -> None:
    source = normal(501, [4.0, -7.0, 1.0], [1.0, 0.3, 2.0], 0)
    target = normal(401, [-3.0, 1.0, 2.0], [2.0, 1.0, 2.0], 1)
    model, sites = through(nn.Identity(), Curved()), ["0:out", "1:out"]
    aim = model.run(target).output
    left = {}
    for causal in (True, False):
        act = LinearAcT(sites=sites, causal=causal, support=None).fit(model, sides(source, target))
        left[causal] = w1(model.run(source, edits=act.edits(1.0)).output, aim).sum()
    share = left[True] / left[False]
    evidence("W1 at layer 2: causal over independent", measured=share, at_most=0.5)


@pytest.mark.parametrize("kind", ["linear", "gaussian", "mean"])
def test_one_pass_equals_estimating_site_by_site(kind: Any) -> None:
    model = tiny.model()
    act = LinearAcT(kind=kind).fit(model, PAIRS)
    positive, negative = ([p[i] for p in PAIRS] for i in (0, 1))
    sites = [f"{point}.{n}" for n in range(tiny.LAYERS) for point in ("attn_in", "mlp_in")]
    target = states(model, positive, sites, "mean")
    edits: list[ak.Edit] = []
    for site in sites:
        source = states(model, negative, site, "mean", edits)[site]
        own = affine(source, target[site], kind)
        bounds = source.amin(0), source.amax(0)
        torch.testing.assert_close(act.maps_[site].bias, own[1], rtol=1e-3, atol=1e-4)
        edits.append(ak.Edit(site, Transport(*own, *bounds)))
    assert set(act.maps_) == set(sites)


def test_pixels_move_as_far_as_their_mean() -> None:
    net = tiny.Cnn().eval()
    model, gen = ak.open(net), torch.Generator().manual_seed(0)
    source, target = (torch.randn(9, 3, 6, 5, generator=gen) + c for c in (0.0, 1.5))
    act = LinearAcT(sites="conv1:out", support=None).fit(model, sides(source, target))
    bare, moved, aim = (
        model.run(x, record="conv1:out", edits=e)["conv1:out"]
        for x, e in ((source, []), (source, act.edits(1.0)), (target, []))
    )
    way = moved - bare
    torch.testing.assert_close(way, way[..., :1, :1].expand_as(way), rtol=1e-4, atol=1e-5)
    slope, bias = affine(bare.mean((2, 3)), aim.mean((2, 3)))
    expected = slope * bare.mean((2, 3)) + bias
    torch.testing.assert_close(moved.mean((2, 3)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "rows", "said"),
    [
        ({}, (1, 7), r"2 rows.* \(1, 2\) and \(7, 2\)"),
        ({}, (7, 1), r"2 rows.* \(7, 2\) and \(1, 2\)"),
        ({"support": 0.0}, (7, 7), r"support.* got 0.0"),
        ({"kind": "cubic"}, (7, 7), "kind.* got 'cubic'"),
    ],
    ids=["one source", "one target", "no support", "unknown kind"],
)
def test_bad_settings_and_sides_are_refused(settings: Any, rows: Any, said: str) -> None:
    source, target = (normal(n, [1.0, 2.0], [1.0, 3.0], 0) for n in rows)
    with pytest.raises(InputError, match=said):
        LinearAcT(sites="0:out", **settings).fit(through(nn.Identity()), sides(source, target))


@pytest.mark.parametrize("side", ["negative", "positive"])
def test_states_that_are_not_finite_are_counted(side: str) -> None:
    given = sides(normal(5, [1.0, 2.0], [1.0, 3.0], 0), normal(6, [1.0, 2.0], [1.0, 3.0], 1))
    given[side][0][1:3, 0] = torch.nan
    with pytest.raises(InputError, match=r"finite, got 2 NaN .*0:out"):
        LinearAcT(sites="0:out").fit(through(nn.Identity()), given)
