from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.special import lambertw
from torch import Tensor, nn

from actkit.core.errors import InputError
from actkit.model import Model
from actkit.opening.checkpoints import Checkpoints
from actkit.read.training._massive_curve import MassiveCurve, Parameters, fit_curve, peak_step
from actkit.read.training.massive_dynamics import massive_dynamics, massive_ratios
from tests._evidence import Evidence
from tests.core import tiny

KEY = "hidden-dynamics-massive-activations"
PLANTED = Parameters(A=300, lam=0.25, gamma=0.2, t0=1.2, K=20)


def noisy(parameters: Parameters, num: int = 150, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return steps 0, 1, ... and the curve with 2 % multiplicative noise."""
    gen = torch.Generator().manual_seed(seed)
    steps_C = torch.arange(num).double()
    x = parameters.gamma * steps_C + parameters.t0
    clean_C = parameters.A * (-parameters.lam * x).exp() * x.log() + parameters.K
    return steps_C, clean_C * (1 + 0.02 * torch.randn(num, generator=gen, dtype=torch.float64))


def r2_of_quadratic_in_log(steps_C: Tensor, ratios_C: Tensor) -> float:
    t, y = np.log1p(steps_C.numpy()), ratios_C.numpy()
    rest = y - np.polyval(np.polyfit(t, y, 2), t)
    return float(1 - (rest**2).sum() / ((y - y.mean()) ** 2).sum())


@pytest.mark.paper(KEY)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_curve_and_its_peak_are_found(seed: int, evidence: Evidence) -> None:
    steps_C, ratios_C = noisy(PLANTED, seed=seed)
    found = fit_curve(steps_C, ratios_C)
    expected = (np.exp(lambertw(1 / 0.25).real) - 1.2) / 0.2
    assert expected == pytest.approx(10.64, abs=0.01)
    evidence(f"R2 of the fit, seed {seed}", measured=found.r2, at_least=0.99)
    evidence(f"peak / Lambert W's, seed {seed}", measured=found.t_peak / expected, equals=1,
             tolerance=0.03)  # fmt: skip
    baseline = r2_of_quadratic_in_log(steps_C, ratios_C)
    evidence(f"R2 above a quadratic in log t, seed {seed}", measured=found.r2 - baseline,
             at_least=0.01)  # fmt: skip
    assert found.kind == "early peak"
    assert pytest.approx(20, rel=0.05) == found.K


def test_a_curve_without_noise_gives_back_its_parameters() -> None:
    steps_C, _ = noisy(PLANTED)
    curve = MassiveCurve(*PLANTED, 1, 10.64, 149)
    found = fit_curve(1000 * steps_C, curve.at(steps_C))
    assert found.parameters == pytest.approx(PLANTED._replace(gamma=0.2e-3), rel=1e-3)
    assert found.t_peak == pytest.approx(1000 * 10.637, rel=1e-3) and found.last_step == 149000
    torch.testing.assert_close(found.at(1000 * steps_C), curve.at(steps_C), rtol=1e-4, atol=0)


def test_a_logarithmic_climb_has_no_early_peak() -> None:
    steps_C, ratios_C = noisy(Parameters(A=40, lam=0, gamma=0.3, t0=1.5, K=20))
    found = fit_curve(steps_C, ratios_C)
    assert found.kind == "log increase" and found.r2 > 0.97


def test_scale_of_ratios_and_of_steps_only_rescale_the_curve() -> None:
    steps_C, ratios_C = noisy(PLANTED)
    one, other = fit_curve(steps_C, ratios_C), fit_curve(50 * steps_C, 7 * ratios_C)
    assert other.t_peak == pytest.approx(50 * one.t_peak, rel=1e-3)
    assert other.r2 == pytest.approx(one.r2, rel=1e-6)
    assert pytest.approx((7 * one.A, 7 * one.K), rel=1e-2) == (other.A, other.K)


def test_peaks_at_the_limits() -> None:
    assert peak_step(PLANTED._replace(lam=0)) == np.inf
    assert np.isnan(peak_step(PLANTED._replace(t0=4)))
    falling = MassiveCurve(*PLANTED._replace(t0=4), 1, np.nan, 149)
    assert falling.kind == "early peak"
    steps_C = torch.linspace(0, 30, 100001)
    curve = MassiveCurve(*PLANTED, 1, 0, 0)
    highest = steps_C[curve.at(steps_C).argmax()]
    assert peak_step(PLANTED) == pytest.approx(float(highest), abs=1e-3)


def test_ratios_that_do_not_vary() -> None:
    found = fit_curve(torch.arange(8), torch.full((8,), 3.0))
    assert (found.A, found.K) == (0, 3) and np.isnan(found.r2)


@pytest.mark.parametrize(
    ("steps", "ratios", "message"),
    [
        ([0, 1, 2, 3, 4], [1.0] * 5, "at least 6 different steps"),
        ([0, 1, 2, 3, 4, 4], [1.0] * 6, "at least 6 different steps"),
        ([0, 1, 2, 3, 4, 5], [1.0] * 5, "at least 6 different steps"),
        ([0, 1, 2, 3, 4, 5], [1.0] * 5 + [float("nan")], "finite"),
        ([-1, 1, 2, 3, 4, 5], [1.0] * 6, "at least 0"),
    ],
    ids=["few", "twice", "lengths", "nan", "negative"],
)
def test_a_fit_refuses(steps: list[int], ratios: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_curve(torch.tensor(steps), torch.tensor(ratios))


def growing() -> Iterator[tuple[int, Model]]:
    """Yield a tiny network one of whose units is written ever larger, up to a peak."""
    net = tiny.llama()
    opened = Model(net, tiny.tokenizer())
    original = net.model.layers[1].mlp.down_proj.weight.detach().clone()
    for step in range(0, 200, 10):
        size = MassiveCurve(*PLANTED, 1, 0, 0).at(torch.tensor(step))
        with torch.no_grad():
            net.model.layers[1].mlp.down_proj.weight.copy_(original)
            net.model.layers[1].mlp.down_proj.weight[7] *= float(size)
        yield step, opened


def test_curves_over_checkpoints() -> None:
    found = massive_dynamics(Checkpoints(growing), tiny.PROMPTS)
    assert found.steps_C.tolist() == list(range(0, 200, 10))
    assert list(found.ratios) == list(found.curves) == [f"resid_post.{i}" for i in range(3)]
    flat = found.curves["resid_post.0"]
    assert flat.A == 0 and pytest.approx(float(found.ratios["resid_post.0"][0])) == flat.K
    grown = found.curves["resid_post.1"]
    assert grown.r2 > 0.99 and grown.kind == "early peak"
    assert grown.t_peak == pytest.approx(10.64, rel=0.05)


def test_ratio_is_the_mean_over_texts_without_padding() -> None:
    model = tiny.model()
    ratios = massive_ratios(model, tiny.PROMPTS)
    expected = []
    for prompt in tiny.PROMPTS:
        size = model.run(prompt, record="resid_post.1")["resid_post.1"].abs().double().numpy()
        expected.append(size.max() / np.median(size))
    assert ratios["resid_post.1"] == pytest.approx(np.mean(expected))


def test_checkpoints_that_do_not_fit_together_are_refused() -> None:
    narrow, wide = (nn.Sequential(nn.Linear(3, width)) for width in (4, 5))
    texts = [torch.ones(2, 3)]
    with pytest.raises(InputError, match="share sites and widths"):
        massive_dynamics(Checkpoints([narrow, wide]), texts, "0:out")
    with pytest.raises(InputError, match="at least 6 different steps"):
        massive_dynamics(Checkpoints([tiny.model()]), tiny.PROMPTS)
    with pytest.raises(InputError, match="at least one text"):
        massive_ratios(tiny.model(), [])
    last = nn.Linear(3, 4)
    nn.init.constant_(last.weight, torch.inf)
    broken = nn.Sequential(last)
    with pytest.raises(InputError, match="got 8 others at 0:out"):
        massive_ratios(Model(broken), texts, "0:out")


@pytest.mark.paper(KEY)
def test_smollm2_holds_them_from_block_12_on(smollm2: Model, evidence: Evidence) -> None:
    """Block l's output is `hidden_states[l + 1]`; 0 is the embedding."""
    text = (
        "The lighthouse keeper had lived on the rock for thirty years, and in all that time he "
        "had never once let the lamp go out. On the night of the great storm the oil ran low, "
        "the waves climbed over the lower gallery, and he carried the last barrel up the stairs "
        "alone while the wind tore at the door behind him."
    )
    sites = ["resid_pre.0", *(f"resid_post.{block}" for block in range(12, 20))]
    ratios = massive_ratios(smollm2, [text], sites)
    rec = smollm2.run(text, record=sites)
    places = {divmod(int(rec[site].abs().argmax()), 576) for site in sites[1:]}
    evidence("ratio at the embedding", measured=ratios.pop("resid_pre.0"), at_most=100)
    evidence("smallest ratio of hidden_states[13..20]", measured=min(ratios.values()),
             at_least=1000)  # fmt: skip
    evidence("largest entry's (token, unit) pairs there", measured=len(places), at_most=1)
    assert places == {(0, 507)}
