"""The regulator over layers: against dense dynamic programming, and its Jacobians."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import InputError
from actkit.core.sweep.derivative import derivative
from actkit.model import Model
from actkit.steer.controllers.lqr import LQR
from actkit.steer.controllers.lqr._pullback import pullbacks
from tests._evidence import Evidence
from tests.core import tiny

WIDTH, SITES = 8, 6
NAMES = [f"{k}:out" for k in range(SITES)]


def stack() -> Model:
    """Six linear layers with biases, uneven, in float64."""
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH).double() for _ in range(SITES)]
    for k, layer in enumerate(layers):
        layer.weight.data += (0.6 + 0.2 * k) * torch.eye(WIDTH)
    return ak.open(nn.Sequential(*layers).requires_grad_(False))


def sides() -> dict[str, list[Tensor]]:
    """Seven positive and five negative inputs of one token."""
    made = [tiny.uneven(n, 1, WIDTH, seed=n, dtype=torch.float64) for n in (7, 5)]
    return {"positive": [made[0] + 0.8], "negative": [made[1]]}


def regulated(lqr: LQR, model: Model, x: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Return the states before control (K, D) and the controls (K - 1, D) of one run."""
    before: list[Tensor] = []

    def watch(at: Tensor) -> Tensor:
        before.append(at)
        return at

    watched = [ak.apply(name, watch) for name in NAMES]
    rec = model.run(x, record=NAMES, edits=[*watched, *lqr.edits(strength)])
    states_KD = torch.stack(before)[:, 0, 0]
    after_KD = torch.stack([rec[name] for name in NAMES])[:, 0, 0]
    return states_KD, (after_KD - states_KD)[:-1]


def dense_optimum(lqr: LQR, model: Model, x_D: Tensor, strength: float) -> Tensor:
    """Return all controls (K - 1, D) at once, by least squares on the unrolled stack.

    The residuals are linear in the controls, so their matrix is their Jacobian.
    """
    start_KD = torch.zeros(SITES - 1, WIDTH).double()
    residuals = torch.func.jacrev(lambda u: cost_terms(lqr, model, x_D, u, strength))(start_KD)
    at_zero = cost_terms(lqr, model, x_D, start_KD, strength)
    best: Tensor = torch.linalg.lstsq(residuals.flatten(1), -at_zero[:, None]).solution
    return best.reshape(SITES - 1, WIDTH)


def cost_terms(lqr: LQR, model: Model, x_D: Tensor, u_KD: Tensor, strength: float) -> Tensor:
    """Return what the cost is the sum of squares of, from the state at the first site on."""
    setpoints = (lqr.means_ * lqr.directions_).sum(-1) + strength * lqr.halves_
    errors = [lqr.directions_[0] @ x_D - setpoints[0]]
    for k in range(1, SITES):
        x_D = model.module[k](x_D + u_KD[k - 1])  # type: ignore[index]
        errors.append(lqr.directions_[k] @ x_D - setpoints[k])
    return torch.cat([torch.stack(errors), lqr.control_cost**0.5 * u_KD.flatten()])


@pytest.mark.paper("local-linearity-llms-enables")
def test_optimal_on_a_linear_stack(evidence: Evidence) -> None:
    model = stack()
    lqr = LQR(control_cost=0.3, sites=NAMES).fit(model, sides())
    x = tiny.uneven(1, 1, WIDTH, seed=3, dtype=torch.float64) * 2
    states_KD, u_KD = regulated(lqr, model, x, 1.7)
    best_KD = dense_optimum(lqr, model, states_KD[0], 1.7)
    error = (u_KD - best_KD).abs().max() / best_KD.abs().max()
    evidence("largest relative error of u against the dense optimum", measured=error, at_most=1e-6)

    def cost(u: Tensor) -> float:
        return float(cost_terms(lqr, model, states_KD[0], u, 1.7).square().sum())

    gen = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-4, 0, 1000, dtype=torch.float64)
    with torch.no_grad():
        others = [
            cost(u_KD + size * torch.randn(u_KD.shape, generator=gen, dtype=torch.float64))
            for size in sizes
        ]
    rise = min(others) - cost(u_KD)
    evidence("least rise of the cost over 1000 random perturbations", measured=rise, at_least=0)
    idle = LQR(control_cost=1e12, sites=NAMES).fit(model, sides())
    size = regulated(idle, model, x, 1.7)[1].norm() / u_KD.norm()
    evidence("|u| at r = 1e12 / |u| at r = 0.3", measured=size, at_most=1e-8)


def test_the_open_loop_equals_the_closed_one_at_the_mean() -> None:
    """On a linear stack nothing strays from the mean, so there is nothing to feed back."""
    model = stack()
    closed, opened = (
        LQR(feedback=f, sites=NAMES, control_cost=0.3).fit(model, sides()) for f in (True, False)
    )
    plus, minus = (sides()[side][0].mean(0, keepdim=True) for side in ("positive", "negative"))
    runs = [regulated(lqr, model, (plus + minus) / 2, -0.8)[1] for lqr in (closed, opened)]
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-5, atol=1e-5)
    strayed = [regulated(lqr, model, plus + 1, -0.8)[1] for lqr in (closed, opened)]
    assert (strayed[0] - strayed[1]).norm() > 0.1
    torch.testing.assert_close(strayed[1], runs[1])


def test_only_chosen_layers_act_and_they_are_optimal_alone() -> None:
    model = stack()
    lqr = LQR(control_cost=0.3, sites=NAMES).fit(model, sides()).at([1, 3])
    assert [edit.site for edit in lqr.edits(1.0)] == ["1:out", "3:out"]
    x = tiny.uneven(1, 1, WIDTH, seed=3, dtype=torch.float64)
    states_KD, u_KD = regulated(lqr, model, x, 1.0)
    mask = torch.tensor([0, 1, 0, 1, 0])[:, None].double()
    free = torch.func.jacrev(lambda u: cost_terms(lqr, model, states_KD[0], u * mask, 1.0))
    slope = free(u_KD).flatten(1)
    gradient = slope.mT @ cost_terms(lqr, model, states_KD[0], u_KD * mask, 1.0)
    assert gradient.abs().max() < 1e-5
    assert not (u_KD * (1 - mask)).any()


def test_pullbacks_are_products_of_mean_jacobians() -> None:
    """Against Jacobians of a transformer's blocks, entry by entry, of two texts of other length."""
    model = tiny.model()
    sites = [f"resid_post.{n}" for n in range(tiny.LAYERS)]
    directions = tiny.uneven(tiny.LAYERS, tiny.WIDTH, dtype=torch.float64)
    texts = [tiny.PROMPTS[0], tiny.PROMPTS[1]]
    found = pullbacks(model, [texts], sites, directions)
    matrices = [jacobian(model, texts, site, later) for site, later in pairwise(sites)]
    last_D = directions[2] @ matrices[1]
    torch.testing.assert_close(found[1], last_D[None], rtol=1e-4, atol=1e-5)
    expected = torch.stack([directions[1] @ matrices[0], last_D @ matrices[0]])
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)


def jacobian(model: Model, texts: list[str], site: str, later: str) -> Tensor:
    """Return the mean Jacobian of the last tokens, by forward mode column by column, (D, D)."""
    columns = []
    for unit in torch.eye(tiny.WIDTH):
        _, slope = derivative(model, texts, partial(pushed, site, unit), later)
        columns.append(slope[:, -1].mean(0).double())
    return torch.stack(columns, 1)


def pushed(site: str, vector: Tensor, scale: Tensor) -> list[ak.Edit]:
    return [ak.add(site, vector, scale, ak.Where(tokens="last"))]


def test_a_strength_tracks_its_setpoint() -> None:
    model = stack()
    lqr = LQR(control_cost=1e-6, sites=NAMES).fit(model, sides())
    x = tiny.uneven(4, 3, WIDTH, seed=5, dtype=torch.float64)
    for strength in (-1.0, 0.5, 2.0):
        found = lqr.tracking(model, x, lqr.edits(strength), strength)
        assert found.features_KB.shape == (SITES, 4)
        assert found.rms(slice(1, None)) < 1e-3
        assert (found.effort_B > 0).all()
    positive = sides()["positive"][0].mean(0, keepdim=True)
    bare = lqr.tracking(model, positive, [])
    assert bare.rms() < 1e-5 and not bare.effort_B.any()


def test_what_cannot_be_learnt_is_refused() -> None:
    model, given = stack(), sides()
    with pytest.raises(InputError, match="control_cost must be positive, got 0"):
        LQR(control_cost=0.0, sites=NAMES).fit(model, given)
    with pytest.raises(InputError, match="num_calibration must be at least 1, got 0"):
        LQR(sites=NAMES, num_calibration=0).fit(model, given)
    with pytest.raises(InputError, match="at least 2 sites"):
        LQR(sites="0:out").fit(model, given)
    with pytest.raises(InputError, match="sides must differ"):
        LQR(sites=NAMES).fit(model, dict.fromkeys(given, given["positive"]))
    with pytest.raises(InputError, match="layers must be among 0 to 4"):
        LQR(sites=NAMES).fit(model, given).at(5).edits(1.0)
