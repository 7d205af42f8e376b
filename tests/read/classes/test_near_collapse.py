"""The proximal model: stationary points, monotone paths, and the strength of the pull."""

from typing import Any

import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.read.classes.near_collapse import central_path, near_collapse
from actkit.read.classes.neural_collapse import neural_collapse
from tests._evidence import Evidence

KEY = "perturbation-analysis-neural-collapse"


def planted(seed: int, sizes: tuple[int, ...] = (11, 17, 9, 14), width: int = 7) -> Any:
    """Return features with class structure, an offset and unequal scales, and their labels."""
    gen = torch.Generator().manual_seed(seed)
    labels_N = torch.cat([torch.full((n,), k) for k, n in enumerate(sizes)])
    means = torch.randn(len(sizes), width, generator=gen, dtype=torch.float64)
    noise = torch.randn(len(labels_N), width, generator=gen, dtype=torch.float64)
    scale_D = torch.linspace(0.2, 0.8, width, dtype=torch.float64)
    return means[labels_N] + 0.3 + noise * scale_D, labels_N


def objective(h: Tensor, w: Tensor, h0: Tensor, y: Tensor, decay: float, pull: float) -> Tensor:
    fit = sum((w @ h[i] - torch.eye(len(w)).double()[y[i]]).square().sum() for i in range(len(h)))
    return (fit / len(h) + decay * w.square().sum() + pull * (h - h0).square().sum()) / 2


@pytest.mark.paper(KEY)
def test_nc1_falls_along_the_flow_and_less_where_features_are_held(evidence: Evidence) -> None:
    rises, shares = [], []
    for seed in range(5):
        h0_ND, labels_N = planted(seed)
        flow = central_path(h0_ND, labels_N, decay=0.01, rate=0.2, num_steps=300)
        rises.append(float(flow.nc1_T.diff().max()))
        shares.append(float(flow.nc1_T[-1] / flow.nc1_T[0]))
    evidence("largest change of NC1 in a step of the flow, 5 seeds", measured=max(rises),
             at_most=0)  # fmt: skip
    evidence("NC1 at the end of the flow / at its start, largest of 5 seeds",
             measured=max(shares), at_most=0.9)  # fmt: skip
    h0_ND, labels_N = planted(0)
    pulls = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    held = [near_collapse(h0_ND, labels_N, decay=0.01, pull=p, num_steps=400) for p in pulls]
    final = torch.stack([run.nc1_T[-1] for run in held])
    evidence("least rise of the final NC1 over 5 rising pulls", measured=final.diff().min(),
             at_least=1e-6)  # fmt: skip
    evidence("final NC1 under the strongest pull / at the start",
             measured=final[-1] / held[-1].nc1_T[0], at_most=1 - 1e-6)  # fmt: skip


def test_the_loss_never_rises_and_its_end_is_stationary() -> None:
    h0_ND, labels_N = planted(1)
    decay, pull = 0.02, 0.005
    found = near_collapse(h0_ND, labels_N, decay=decay, pull=pull, num_steps=2000)
    assert (found.loss_T.diff() <= 1e-15).all()
    h_ND, w_KD = found.features_ND.requires_grad_(), found.weight_KD.requires_grad_()
    loss = objective(h_ND, w_KD, h0_ND, labels_N, decay, pull)
    assert float(loss.detach()) == pytest.approx(float(found.loss_T[-1]), rel=1e-12)
    for grad in torch.autograd.grad(loss, (h_ND, w_KD)):
        assert grad.abs().max() < 1e-8


def test_the_flow_descends_by_the_gradient_at_the_best_classifier() -> None:
    h0_ND, labels_N = planted(2)
    h_ND = h0_ND.clone().requires_grad_()
    y_NK = torch.nn.functional.one_hot(labels_N).double()
    ridge = 0.02 * len(h0_ND) * torch.eye(7).double()
    w_KD = torch.linalg.solve(h_ND.T @ h_ND + ridge, h_ND.T @ y_NK).T
    loss = objective(h_ND, w_KD, h0_ND, labels_N, 0.02, 0.5)  # through the classifier as well
    (grad_ND,) = torch.autograd.grad(loss, h_ND)
    found = central_path(h0_ND, labels_N, decay=0.02, pull=0.5, rate=0.1, num_steps=1)
    step_ND = found.features_ND - h0_ND
    torch.testing.assert_close(step_ND, -0.1 * len(h0_ND) * grad_ND, rtol=1e-9, atol=1e-12)


def test_flow_with_pull_and_turns_of_both_meet() -> None:
    h0_ND, labels_N = planted(3)
    one = near_collapse(h0_ND, labels_N, decay=0.02, pull=0.01, num_steps=500)
    other = central_path(h0_ND, labels_N, decay=0.02, pull=0.01, rate=0.5, num_steps=3000)
    torch.testing.assert_close(one.features_ND, other.features_ND, rtol=1e-5, atol=1e-6)


def test_series_is_that_of_neural_collapse_and_starts_at_the_features() -> None:
    h0_ND, labels_N = planted(4)
    before = h0_ND.clone()
    found = near_collapse(h0_ND, 3 * labels_N - 2, decay=0.1, pull=0.1, num_steps=3)
    assert len(found.nc1_T) == len(found.loss_T) == 4
    assert found.nc1_T[0] == pytest.approx(neural_collapse(h0_ND, labels_N).nc1, rel=1e-12)
    end = neural_collapse(found.features_ND, labels_N).nc1
    assert found.nc1_T[-1] == pytest.approx(end, rel=1e-12)
    assert torch.equal(h0_ND, before)


def test_features_held_fast_stay() -> None:
    h0_ND, labels_N = planted(5)
    found = near_collapse(h0_ND, labels_N, decay=0.1, pull=1e9)
    torch.testing.assert_close(found.features_ND, h0_ND, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 0.0, "pull": 1.0}, "decay must be above 0, got 0"),
        ({"decay": 1.0, "pull": 0.0}, "pull must be above 0, got 0"),
        ({"decay": 1.0, "pull": 1.0, "num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"decay": 1.0, "pull": 1.0, "labels_N": torch.arange(51)}, "2 rows in every class"),
        ({"decay": 1.0, "pull": 1.0, "labels_N": torch.arange(3)}, r"51 rows.*\(3,\)"),
    ],
    ids=["decay", "pull", "steps", "one row", "length"],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], message: str) -> None:
    h0_ND, labels_N = planted(0)
    with pytest.raises(InputError, match=message):
        near_collapse(h0_ND, **({"labels_N": labels_N} | settings))


@pytest.mark.parametrize("settings", [{"pull": -1.0}, {"rate": 0.0}], ids=str)
def test_what_the_flow_refuses(settings: dict[str, float]) -> None:
    h0_ND, labels_N = planted(0)
    with pytest.raises(InputError, match="pull must be at least 0 and rate above 0"):
        central_path(h0_ND, labels_N, decay=0.1, **settings)  # type: ignore[arg-type]
