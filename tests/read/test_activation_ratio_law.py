import numpy as np
import pytest

from actkit.read.activation_ratio_law import activation_ratio_law
from tests._evidence import Evidence

DATA = np.geomspace(0.4, 90, 23)  # billions of tokens
PLANTED = {
    "silu": {"limit": 0.41, "c": 0.1, "alpha": 0.48, "b": 0.0},
    "relu": {"limit": 0.06, "c": 1.3, "alpha": 0.3, "b": 0.4},
}


def planted(kind: str, data: np.ndarray) -> np.ndarray:
    p = PLANTED[kind]
    if kind == "silu":
        return p["limit"] - p["c"] / data ** p["alpha"]
    return p["limit"] + np.exp(p["b"] - p["c"] * data ** p["alpha"])


@pytest.mark.paper("sparsing-law")
@pytest.mark.parametrize("kind", ["silu", "relu"])
def test_planted_laws_are_recovered_from_noisy_ratios(kind: str, evidence: Evidence) -> None:
    off = dict.fromkeys(("limit", "c", "alpha"), 0.0)
    for seed in range(3):
        noise = np.random.default_rng(seed).normal(0, 1e-4, len(DATA))
        law = activation_ratio_law(DATA, planted(kind, DATA) + noise, kind)
        for name in off:
            off[name] = max(off[name], abs(getattr(law, name) / PLANTED[kind][name] - 1))
    for name, worst in off.items():
        evidence(f"{kind}: {name} off by (share), worst of 3", measured=worst, at_most=0.05)
