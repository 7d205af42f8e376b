from typing import Literal

import numpy as np
import pytest

from actkit.core.errors import InputError
from actkit.read.training.activation_ratio_law import Numbers, activation_ratio_law, width_depth_law
from tests._evidence import Evidence

Kind = Literal["silu", "relu"]
DATA = np.geomspace(0.4, 90, 23)  # billions of tokens
PLANTED = {
    "silu": {"limit": 0.41, "c": 0.1, "alpha": 0.48, "b": 0.0},
    "relu": {"limit": 0.06, "c": 1.3, "alpha": 0.3, "b": 0.4},
}


def planted(kind: Kind, data: Numbers) -> Numbers:
    p = PLANTED[kind]
    if kind == "silu":
        return np.asarray(p["limit"] - p["c"] / data ** p["alpha"])
    return np.asarray(p["limit"] + np.exp(p["b"] - p["c"] * data ** p["alpha"]))


kinds = pytest.mark.parametrize("kind", ["silu", "relu"])


@kinds
@pytest.mark.paper("sparsing-law")
def test_planted_laws_are_recovered_from_noisy_ratios(kind: Kind, evidence: Evidence) -> None:
    off = dict.fromkeys(("limit", "c", "alpha"), 0.0)
    for seed in range(3):
        noise = np.random.default_rng(seed).normal(0, 1e-4, len(DATA))
        law = activation_ratio_law(DATA, planted(kind, DATA) + noise, kind)
        for name in off:
            off[name] = max(off[name], abs(getattr(law, name) / PLANTED[kind][name] - 1))
    for name, worst in off.items():
        evidence(f"{kind}: {name} off by (share), worst of 3", measured=worst, at_most=0.05)


@kinds
def test_exact_ratios_are_fitted_exactly_and_predicted(kind: Kind) -> None:
    law = activation_ratio_law(DATA[::-1], planted(kind, DATA)[::-1], kind)
    for name, value in PLANTED[kind].items():
        assert getattr(law, name) == pytest.approx(value, rel=1e-4)
    assert law.rmse < 1e-9 and law.summary()["alpha"] == law.alpha
    np.testing.assert_allclose(law([0.1, 500]), planted(kind, np.array([0.1, 500])), rtol=1e-4)


@kinds
def test_the_unit_of_data_does_not_matter(kind: Kind) -> None:
    tokens = activation_ratio_law(1e9 * DATA, planted(kind, DATA), kind)
    assert tokens.alpha == pytest.approx(PLANTED[kind]["alpha"], rel=1e-3)
    np.testing.assert_allclose(tokens(1e9 * DATA), planted(kind, DATA), rtol=1e-6)


@pytest.mark.paper("sparsing-law")
def test_a_line_with_a_bottleneck_is_recovered(evidence: Evidence) -> None:
    shape = np.array([18, 25, 36, 48, 64, 96, 128, 170, 256.0])
    off = dict.fromkeys(("slope", "bottleneck"), 0.0)
    for seed in range(3):
        noise = np.random.default_rng(seed).normal(0, 1e-4, len(shape))
        law = width_depth_law(shape, 0.1 + 0.002 * np.minimum(shape, 114) + noise)
        off["slope"] = max(off["slope"], abs(law.slope / 0.002 - 1))
        off["bottleneck"] = max(off["bottleneck"], abs(law.bottleneck / 114 - 1))
    for name, worst in off.items():
        evidence(f"width / depth: {name} off by (share), worst of 3", measured=worst, at_most=0.05)


def test_a_line_without_a_bottleneck_ends_with_the_largest_shape() -> None:
    law = width_depth_law([10, 30, 20, 80], [0.2, 0.4, 0.3, 0.9])
    assert (law.slope, law.intercept) == pytest.approx((0.01, 0.1))
    assert law.bottleneck == pytest.approx(80) and law.rmse == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("data", "ratio", "message"),
    [
        ([1, 2, 3], [0.1, 0.2, 0.3], "4 of them different"),
        ([1, 2, 2, 1, 3], [0.1] * 5, "with 3 different"),
        ([1, 2, 3, 4], [0.1] * 3, r"\(4,\) and \(3,\)"),
        ([0, 2, 3, 4], [0.1] * 4, "amounts > 0"),
        ([1, 2, 3, 4], [0.1, 0.2, 0.3, np.nan], "finite ratios"),
    ],
    ids=["few", "equal", "lengths", "zero", "nan"],
)
def test_what_cannot_be_fitted_is_refused(
    data: list[float], ratio: list[float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        activation_ratio_law(data, ratio)
    with pytest.raises(InputError, match=message):
        width_depth_law(data, ratio)


def test_a_rising_relu_law_and_an_unknown_kind_are_refused() -> None:
    with pytest.raises(InputError, match="falls with data"):
        activation_ratio_law(DATA, planted("silu", DATA), "relu")
    with pytest.raises(InputError, match="got 'gelu'"):
        activation_ratio_law(DATA, DATA, "gelu")  # type: ignore[arg-type]
