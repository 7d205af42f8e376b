from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.read.training._massive_curve import Parameters
from actkit.read.training.massive_forecast import MassiveForecast
from tests._evidence import Evidence
from tests.contract import check_copies, check_same, check_unchanged


def layers(num: int = 90, seed: int = 0) -> tuple[Tensor, list[Parameters]]:
    """Return depth, log width and an unrelated feature, and curves that follow the first two."""
    gen = torch.Generator().manual_seed(seed)
    depth_L, width_L, other_L = torch.rand(3, num, generator=gen, dtype=torch.float64)
    noise = 0.05 * torch.randn(5, num, generator=gen, dtype=torch.float64)
    logs = torch.stack([3 * depth_L + 1, 2 - depth_L, width_L + 0.1, 2 * width_L + 0.3]) + noise[:4]
    final_L = 400 * depth_L - 90 * width_L + 300 * noise[4]
    numbers = torch.cat([logs.clamp_min(0).expm1(), final_L[None]]).T
    features_LF = torch.stack([depth_L, 5 + 3 * width_L, other_L], 1)
    return features_LF, [Parameters(*row) for row in numbers.tolist()]


@pytest.mark.paper("hidden-dynamics-massive-activations")
def test_curves_of_unseen_layers_are_forecast(evidence: Evidence) -> None:
    """Planted: every number follows depth and width; the control's layers are shuffled."""
    features_LF, curves = layers()
    r2 = MassiveForecast().cross_validated(features_LF, curves)
    evidence("R2 of the forecast of K for layers left out", measured=r2.K, at_least=0.85)
    evidence("lowest R2 among A, lam, gamma, t0 and K", measured=min(r2), at_least=0.6)
    gen = torch.Generator().manual_seed(0)
    shuffled = features_LF[torch.randperm(len(features_LF), generator=gen)]
    none = MassiveForecast().cross_validated(shuffled, curves)
    evidence("control: R2 of K with layers shuffled", measured=none.K, at_most=0.2)


@pytest.mark.parametrize("model", ["forest", "boosting"])
def test_trees_forecast_too(model: Literal["forest", "boosting"]) -> None:
    features_LF, curves = layers(60)
    found = MassiveForecast(model).fit(features_LF[:45], curves[:45]).predict(features_LF[45:])
    for number in range(5):
        real, guess = (torch.tensor(c)[:, number] for c in (curves[45:], found))
        assert float((real - guess).square().sum() / (real - real.mean()).square().sum()) < 0.4


def test_ridge_recovers_a_law_that_is_linear_after_the_transform() -> None:
    depth_LF = torch.linspace(0, 1, 400, dtype=torch.float64)[:, None] ** 3
    curves = [Parameters(np.expm1(2 * d), 0.1, 0.2, 1.0, 5 * d) for d in depth_LF[:, 0].tolist()]
    found = MassiveForecast().fit(depth_LF, curves).predict(torch.tensor([[0.25], [0.75]]))
    mean = float(depth_LF.mean())
    shrunk = [mean + (d - mean) * 400 / 401 for d in (0.25, 0.75)]  # 400 rows, a ridge of 1
    assert [p.A for p in found] == pytest.approx(np.expm1(2 * np.array(shrunk)), rel=1e-6)
    assert [p.lam for p in found] == pytest.approx([0.1, 0.1])


def test_units_of_features_do_not_matter() -> None:
    features_LF, curves = layers()
    moved = features_LF * torch.tensor([1e3, 0.01, 7.0]) - 40
    one = MassiveForecast().fit(features_LF, curves).predict(features_LF[:4])
    other = MassiveForecast().fit(moved, curves).predict(moved[:4])
    check_same(other, one, rtol=1e-6)


def test_fit_is_repeatable_and_leaves_its_data() -> None:
    features_LF, curves = layers()
    forecast = MassiveForecast("forest", seed=3)
    check_unchanged(lambda: forecast.fit(features_LF, curves), features_LF)
    again = MassiveForecast("forest", seed=3).fit(features_LF, curves)
    check_same(again.predict(features_LF[:3]), forecast.predict(features_LF[:3]))
    check_copies(forecast, lambda f: f.predict(features_LF[:3]))


def test_bad_input_is_refused() -> None:
    features_LF, curves = layers(12)
    with pytest.raises(InputError, match="ridge, forest or boosting"):
        MassiveForecast("lasso")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="fitted on 0 features"):
        MassiveForecast().predict(features_LF)
    with pytest.raises(InputError, match="fitted on 3 features"):
        MassiveForecast().fit(features_LF, curves).predict(features_LF[:, :2])
    with pytest.raises(InputError, match="and 11 curves"):
        MassiveForecast().fit(features_LF, curves[1:])
    with pytest.raises(InputError, match="finite"):
        MassiveForecast().fit(features_LF / 0, curves)
    with pytest.raises(InputError, match="2 to 6 folds of 12 layers, got 7"):
        MassiveForecast().cross_validated(features_LF, curves, folds=7)
