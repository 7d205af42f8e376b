"""Steering fields: exact on identities, and on a network that learnt to step advection-diffusion.

Shapes: B batch, Y and X the grid, S strengths.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import actkit as ak
from actkit.core.edits.files import edit_facts
from actkit.core.errors import EditError, InputError
from actkit.model import Model
from actkit.steer.images.field_steer import FieldSteer
from tests._evidence import Evidence
from tests.core import tiny

STRENGTHS = (-0.2, -0.1, 0.0, 0.1, 0.2)
SPEED = (1.0, 0.5)
DT, WAVES = 0.1, 32


def passing() -> Model:
    return ak.open(nn.Sequential(nn.Identity()), axes={"0:out": "BCYX"})


def fields(*size: int, seed: int = 0) -> Tensor:
    """Uneven fields (3, 4, *size)."""
    return tiny.uneven(3, *size, 4, seed=seed).movedim(-1, 1).contiguous()


def steered(model: Model, steer: FieldSteer, x: Tensor, strength: Any) -> Tensor:
    out: Tensor = model.run(x, edits=steer.edits(strength)).output
    return out


def fitted(spatial: Any, *size: int, **settings: Any) -> FieldSteer:
    sides = {
        "positive": [fields(*size), fields(*size, seed=1)],
        "negative": [fields(*size, seed=2)],
    }
    return FieldSteer("0:out", spatial, **settings).fit(passing(), sides)


def test_delta_is_the_difference_of_the_means_over_samples_and_batches() -> None:
    sides = {
        "positive": [fields(5, 7), fields(5, 7, seed=1)[:1]],
        "negative": [fields(5, 7, seed=2)],
    }
    found = FieldSteer("0:out", "none").fit(passing(), sides).delta_
    feature = torch.cat(sides["positive"]).double().mean(0)
    expected = feature - sides["negative"][0].double().mean(0)
    torch.testing.assert_close(found.double(), expected / expected.norm(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("renormalise", [False, True], ids=str)
def test_the_injected_field_is_a_share_of_the_state(renormalise: bool) -> None:
    """Each sample by hand, whole fields in float64."""
    steer, x = fitted("none", 5, 7, renormalise=renormalise), fields(5, 7, seed=3)
    doses = torch.tensor([0.3, -0.5, 0.0])
    found = steered(passing(), steer, x, doses)
    for h, dose, new in zip(x.double(), doses.double(), found, strict=True):
        want = h + dose * h.norm() * steer.delta_.double() / steer.delta_.double().norm()
        want = want * h.norm() / want.norm() if renormalise else want
        torch.testing.assert_close(new.double(), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[2], x[2])


def test_an_empty_state_stays_empty() -> None:
    nothing = torch.zeros(2, 4, 5, 7)
    assert torch.equal(steered(passing(), fitted("drop", 5, 7), nothing, 0.5), nothing)


@pytest.mark.paper("physics-steering")
def test_spatial_modes_agree_where_they_must(evidence: Evidence) -> None:
    x, model = fields(5, 7, seed=3), passing()
    none = steered(model, fitted("none", 5, 7), x, 0.4)
    for spatial in ("pad", "interpolate"):
        same = steered(model, fitted(spatial, 5, 7).on((5, 7)), x, 0.4)
        error = (same - none).abs().max()
        evidence(f"'{spatial}' on an equal grid less 'none'", measured=error, at_most=0)
    level = torch.arange(1.0, 5.0).reshape(1, 4, 1, 1).expand(2, 4, 5, 7)
    sides = {"positive": [3 * level.square()], "negative": [level]}
    drop, whole = (FieldSteer("0:out", s).fit(model, sides) for s in ("drop", "none"))
    error = (steered(model, drop, x, 0.4) - steered(model, whole, x, 0.4)).abs().max()
    evidence("'drop' less 'none' for a constant field", measured=error, at_most=1e-6)


def test_pad_crops_the_middle_and_fills_the_far_end() -> None:
    steer = fitted("pad", 5, 7, renormalise=False)
    x = torch.ones(1, 4, 3, 9)
    moved = steered(passing(), steer.on((3, 9)), x, 1.0) - x
    part = steer.delta_[:, 1:4]
    torch.testing.assert_close(moved[0, :, :, :7], part / part.norm() * x.norm())
    assert not moved[..., 7:].any()


def test_drop_is_the_mean_over_the_grid_on_any_grid() -> None:
    steer, x = fitted("drop", 5, 7, renormalise=False), torch.ones(1, 4, 3, 9)
    vector = steer.delta_.double().mean((1, 2), keepdim=True).expand(4, 3, 9)
    moved = steered(passing(), steer, x, 1.0) - x
    want = vector / vector.norm() * x.double().norm()
    torch.testing.assert_close(moved[0].double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(4, 6), (3, 4, 5)], ids=str)
def test_interpolation_keeps_a_linear_field_linear(size: tuple[int, ...]) -> None:
    """On a grid three times as fine every third point of the inside is an old one."""
    lines = torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij")
    ramp = sum(lines).expand(1, 2, *size) + 1  # type: ignore[union-attr]
    sides = {"positive": [2 * ramp], "negative": [ramp]}
    steer = FieldSteer("0:out", "interpolate").fit(passing(), sides)
    fine = steer.on([3 * n for n in size])._fitting()
    every = (slice(None), *[slice(1, None, 3)] * len(size))
    torch.testing.assert_close(fine[every], steer.delta_)


def test_a_saved_file_steers_the_same(tmp_path: Path) -> None:
    steer, model, x = fitted("interpolate", 5, 7).on((4, 9)), passing(), fields(4, 9)
    steer.save(tmp_path / "edits", model, 0.3)
    assert edit_facts(tmp_path / "edits")["settings"]["settings"]["size"] == [4, 9]
    loaded = ak.load_edits(tmp_path / "edits", model)
    assert torch.equal(model.run(x, edits=loaded).output, steered(model, steer, x, 0.3))


def test_bad_input_is_refused() -> None:
    model, one = passing(), fields(5, 7)
    with pytest.raises(InputError, match=r"one grid.*\(4, 5, 7\).*\(4, 7, 5\)"):
        FieldSteer("0:out").fit(model, {"positive": [one], "negative": [fields(7, 5)]})
    with pytest.raises(InputError, match=r"all fields need one grid"):
        FieldSteer("0:out").fit(model, {"positive": [one, fields(7, 5)], "negative": [one]})
    with pytest.raises(InputError, match=r"must hold batches of fields.*\(3, 4\)"):
        FieldSteer("0:out").fit(model, {"positive": [one[..., 0, 0]], "negative": [one[..., 0, 0]]})
    with pytest.raises(InputError, match="must differ and be finite, got 0"):
        FieldSteer("0:out").fit(model, {"positive": [one], "negative": [one]})
    with pytest.raises(InputError, match="must differ and be finite, got nan"):
        FieldSteer("0:out").fit(model, {"positive": [one * torch.nan], "negative": [one]})
    with pytest.raises(InputError, match="spatial must be"):
        fitted("crop", 5, 7)
    with pytest.raises(InputError, match=r"grid must be \(5, 7\), got \(7, 5\)"):
        fitted("none", 5, 7).on((7, 5)).edits()
    with pytest.raises(InputError, match="2 axes"):
        fitted("pad", 5, 7).on((7, 5, 3)).edits()
    with pytest.raises(EditError, match="24 points, got 35"):
        steered(model, fitted("pad", 5, 7), fields(4, 6), 0.5)


def frequencies(size: int) -> tuple[Tensor, Tensor]:
    """Return wave numbers in units of the 32-point grid's."""
    k = torch.fft.fftfreq(size, 1 / WAVES)
    y, x = torch.meshgrid(k, k, indexing="ij")
    return y, x


def waves(num: int, size: int, gen: torch.Generator) -> Tensor:
    """Return random fields (num, size, size) of wave numbers up to 6, of unit variance."""
    y, x = frequencies(size)
    k = (y**2 + x**2).sqrt()
    white = torch.fft.fft2(torch.randn(num, size, size, generator=gen))
    u: Tensor = torch.fft.ifft2(white * ((k > 0) & (k <= 6)) / k.clamp_min(1)).real
    return u / u.std((1, 2), keepdim=True)


def blobs(num: int, size: int, gen: torch.Generator) -> Tensor:
    """Return fields of six bumps or dents each, without mean and of unit variance."""
    at, u = torch.arange(size), torch.zeros(num, size, size)
    for _ in range(6):
        y, x, wide, sign = torch.rand(4, num, 1, 1, generator=gen)
        dy = (at[:, None] - size * y + size / 2) % size - size / 2
        dx = (at - size * x + size / 2) % size - size / 2
        u = u + (sign - 0.5).sign() * torch.exp(-(dy**2 + dx**2) / (2 * (2.5 + 2 * wide) ** 2))
    u = u - u.mean((1, 2), keepdim=True)
    return u / u.std((1, 2), keepdim=True)


def step(u: Tensor, viscosity: Any) -> Tensor:
    """Return the exact solution a time step later."""
    y, x = frequencies(u.shape[-1])
    nu = torch.as_tensor(viscosity).reshape(-1, 1, 1)
    rate = -nu * (y**2 + x**2) - 1j * (SPEED[0] * y + SPEED[1] * x)
    after: Tensor = torch.fft.ifft2(torch.fft.fft2(u) * torch.exp(DT * rate)).real
    return after


class Stepper(nn.Module):
    """Predicts the next field from the last two.

    The older field enters only what gates the operators that act on the newer one: a linear
    recursion, which fits two viscosities without knowing which it sees, cannot be learnt.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)

        def conv(num_in: int, num_out: int, size: int) -> nn.Conv2d:
            return nn.Conv2d(num_in, num_out, size, padding=size // 2, padding_mode="circular")

        self.stem = nn.Sequential(conv(2, width, 3), nn.GELU(), conv(width, width, 1), nn.GELU())
        self.block = nn.Sequential(conv(2 * width, width, 1), nn.GELU(), conv(width, width, 1))
        self.lift, self.head = conv(1, width, 5), conv(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = torch.cat([h, h.mean((2, 3), keepdim=True).expand_as(h)], 1)
        change: Tensor = self.head(self.block(h) * self.lift(x[:, 1:]))
        return x[:, 1:] + change


def trained(num_steps: int = 250) -> Stepper:
    """Train on viscosities of .02 to .18."""
    net, gen = Stepper(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters())
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, num_steps)
    for i in range(num_steps):
        nu = 0.02 + 0.16 * torch.rand(8, generator=gen)
        u = waves(8, WAVES, gen)
        for _ in range(i % 5):
            u = step(u, nu)
        now = step(u, nu)
        after = step(now, nu)
        error = net(torch.stack([u, now], 1))[:, 0] - after
        loss = error.square().sum() / (now - after).square().sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        plan.step()
    return net.eval()


def simulation(u: Tensor, viscosity: float, num: int) -> list[Tensor]:
    """Return pairs of neighbouring fields, (B, 2, Y, X) each."""
    pairs = []
    for _ in range(num):
        after = step(u, viscosity)
        pairs.append(torch.stack([u, after], 1))
        u = after
    return pairs


def viscosity(model: Model, pair: Tensor, edits: list[ak.Edit], num: int = 8) -> float:
    """Return the viscosity at which waves decay in a rollout, averaged over the waves."""
    y, x = frequencies(pair.shape[-1])
    k2, state = y**2 + x**2, pair
    with torch.no_grad(), model.edited(edits):
        for _ in range(num):
            state = torch.cat([state[:, 1:], model.module(state)], 1)
    first, last = torch.fft.fft2(pair[:, 1]).abs(), torch.fft.fft2(state[:, 1]).abs()
    rate = (first / last.clamp_min(1e-9)).log() / (num * DT)
    low = (k2 > 0) & (k2 <= 10)
    weight = (first * k2)[:, low]
    return float(((rate[:, low] * weight).sum(1) / (weight * k2[low]).sum(1)).mean())


@pytest.fixture(scope="module")
def model() -> Model:
    return ak.open(trained())


@pytest.fixture(scope="module")
def steer(model: Model) -> FieldSteer:
    gen = torch.Generator().manual_seed(1)
    high, low = (simulation(waves(8, WAVES, gen), nu, 4) for nu in (0.15, 0.05))
    return FieldSteer("block:out").fit(model, {"positive": high, "negative": low})


def effects(model: Model, steer: FieldSteer, start: Tensor) -> list[float]:
    """Return the change of the viscosity at each strength."""
    pair = simulation(start, 0.1, 1)[0]
    found = [viscosity(model, pair, steer.edits(s)) for s in STRENGTHS]
    return [f - found[STRENGTHS.index(0.0)] for f in found]


@pytest.mark.slow
@pytest.mark.paper("physics-steering")
def test_viscosity_follows_the_strength(
    model: Model, steer: FieldSteer, evidence: Evidence
) -> None:
    start = waves(8, WAVES, torch.Generator().manual_seed(2))
    pair = simulation(start, 0.1, 1)[0]
    bare = viscosity(model, pair, [])
    evidence(
        "effective viscosity of an unedited rollout", measured=bare, equals=0.1, tolerance=0.03
    )
    change = abs(viscosity(model, pair, steer.edits(0.0)) - bare)
    evidence("change of the rollout at strength 0", measured=change, at_most=0)
    own = effects(model, steer, start)
    order = spearmanr(STRENGTHS, own).statistic
    evidence("Spearman of effective viscosity and strength", measured=order, at_least=0.9)
    evidence("viscosity's change at +0.2", measured=own[-1], at_least=0.01)
    evidence("viscosity's change at -0.2", measured=own[0], at_most=-0.01)
    others = []
    for seed in range(20):
        gen = torch.Generator().manual_seed(seed)
        random = FieldSteer("block:out")
        random.delta_, random.about_ = torch.randn(64, 1, 1, generator=gen), {}
        up, down = (viscosity(model, pair, random.edits(s)) for s in (0.2, -0.2))
        others.append(abs(up - down) / (own[-1] - own[0]))
    mean = torch.tensor(others).mean()
    evidence("mean |effect| of 20 random directions, as a share", measured=mean, at_most=0.25)
    less = torch.tensor([o < 1 for o in others]).float().mean()
    evidence("share of random directions with less effect", measured=less, at_least=0.95)


@pytest.mark.slow
@pytest.mark.paper("physics-steering")
@pytest.mark.parametrize(
    ("family", "size"),
    [(waves, 48), (blobs, 32), (blobs, 48)],
    ids=["waves48", "blobs32", "blobs48"],
)
def test_the_channel_vector_transfers(
    model: Model, steer: FieldSteer, evidence: Evidence, family: Any, size: int
) -> None:
    """Fitted on waves on 32 x 32 points."""
    found = effects(model, steer, family(8, size, torch.Generator().manual_seed(3)))
    what = f"on {size} x {size} {family.__name__}"
    evidence(f"viscosity's change at +0.2 {what}", measured=found[-1], at_least=0.01)
    evidence(f"viscosity's change at -0.2 {what}", measured=found[0], at_most=-0.01)
