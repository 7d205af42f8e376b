"""The dynamics against closed forms and against a network that is trained by SGD."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actkit.core.errors import InputError
from actkit.read.training.deep_linear_ode import deep_linear_ode
from tests._evidence import Evidence

KEY = "critical-learning-periods-emerge"
NOISE = (0.1, 0.1)


def trained(depth: int, seed: int, rate: float = 0.01, units: int = 45) -> Tensor:
    """Return (T, 2) strengths of two linear pathways, trained by SGD on batches of 256.

    They start balanced and aligned with the mode; the first sensor is silent up to time 15.
    """
    gen = torch.Generator().manual_seed(seed)

    def unit(width: int) -> Tensor:
        drawn = torch.randn(width, generator=gen)
        return nn.functional.normalize(drawn, dim=0)

    def pathway() -> list[nn.Parameter]:
        ends = [out, *(unit(8) for _ in range(depth - 1)), signal]
        scale = 0.02 ** (1 / depth)
        return [nn.Parameter(scale * torch.outer(*ends[i : i + 2])) for i in range(depth)]

    def whole(weights: list[nn.Parameter]) -> Tensor:
        product: Tensor = torch.linalg.multi_dot(weights)
        return product

    out, signal = unit(4), unit(6)
    paths = [pathway() for _ in range(2)]
    optimizer = torch.optim.SGD([w for path in paths for w in path], lr=rate)
    found = []
    for step in range(round(units / rate)):
        if step % round(1 / rate) == 0:
            found.append([float(out @ whole(path).detach() @ signal) for path in paths])
        seen = torch.randn(256, 6, generator=gen)
        sensors = [seen + 0.1**0.5 * torch.randn(256, 6, generator=gen) for _ in paths]
        sensors[0] *= step * rate >= 15
        said = sum(x @ whole(path).T for x, path in zip(sensors, paths, strict=True))
        loss: Any = (said - torch.outer(seen @ signal, out)).square().sum(1).mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.paper(KEY)
def test_an_early_deficit_is_for_life_in_deep_networks(evidence: Evidence) -> None:
    def share(depth: int, onset: float) -> float:
        found = deep_linear_ode([onset + 45], depth, noise=NOISE, deficit=(onset, 15))
        return float(found.shares[0, 0])

    printed = {1: 0.477, 2: 0.402, 3: 0.271, 4: 0.183}
    early = {depth: share(depth, 0) for depth in printed}
    for depth, value in printed.items():
        evidence(f"share of the deprived pathway, deficit at 0, depth {depth}",
                 measured=early[depth], equals=value, tolerance=1e-3)  # fmt: skip
    evidence("the same at depth 1", measured=early[1], at_least=0.45)
    evidence("the same at depth 4", measured=early[4], at_most=0.20)
    falls = [early[d] - early[d + 1] for d in (1, 2, 3)]
    evidence("least fall of the share for one more layer", measured=min(falls), at_least=0.01)
    late = [share(depth, 30) for depth in printed]
    evidence("share after the same deficit at 30, least over depths", measured=min(late),
             at_least=0.48)  # fmt: skip


@pytest.mark.paper(KEY)
def test_a_network_trained_by_sgd_follows(evidence: Evidence) -> None:
    law = deep_linear_ode(torch.arange(45), 3, noise=NOISE, deficit=(0, 15)).strengths_TP
    off = [((trained(3, seed) - law) / law).abs().max() for seed in range(2)]
    evidence("depth 3, largest relative distance of a_i(t) from SGD, 2 seeds", measured=max(off),
             at_most=0.05)  # fmt: skip


def test_depth_one_and_two_equal_their_closed_forms() -> None:
    times_T = torch.linspace(0, 7, 15, dtype=torch.float64)
    one = deep_linear_ode(times_T, 1, target=2.0, start=(0.3, 0.1)).strengths_TP
    total_T = 2 + (0.4 - 2) * (-2 * times_T).exp()
    torch.testing.assert_close(one.sum(1), total_T, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(one[:, 0] - one[:, 1], torch.full((15,), 0.2).double())
    two = deep_linear_ode(times_T, 2, target=1.5, start=(0.3, 0.1)).strengths_TP
    total_T = 1.5 / (1 + (1.5 / 0.4 - 1) * (-3 * times_T).exp())  # logistic; shares stay
    torch.testing.assert_close(two.sum(1), total_T, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(two[:, 0] / two.sum(1), torch.full((15,), 0.75).double())


def test_the_silent_pathway_stays_and_adds_nothing() -> None:
    times_T = torch.tensor([0.0, 1.0, 2.0, 5.0, 6.0])
    found = deep_linear_ode(times_T, 2, start=(0.2, 0.1), deficit=(1.0, 4.0)).strengths_TP
    assert found[1, 0] == pytest.approx(float(found[3, 0]), rel=1e-12) and found[1, 0] > 0.2
    grown = float(found[1, 1])
    alone = 1 / (1 + (1 / grown - 1) * torch.tensor([-2.0, -8.0]).double().exp())
    torch.testing.assert_close(found[2:4, 1], alone, rtol=1e-6, atol=1e-8)
    assert found[4, 0] != found[3, 0]


def test_times_do_not_change_the_path_and_pathways_may_be_more() -> None:
    given: dict[str, Any] = {
        "noise": (0.1, 0.0, 0.3),
        "start": (0.02, 0.03, 0.01),
        "deficit": (2.0, 3.0),
    }
    many = deep_linear_ode(torch.linspace(0, 20, 41), 3, **given)
    few = deep_linear_ode([0.0, 2.0, 5.0, 20.0], 3, **given)
    torch.testing.assert_close(many.strengths_TP[[0, 4, 10, 40]], few.strengths_TP, rtol=1e-6,
                               atol=1e-8)  # fmt: skip
    torch.testing.assert_close(many.shares.sum(1), torch.ones(41).double())
    assert deep_linear_ode([0.0], 3).strengths_TP.tolist() == [[0.02, 0.02]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"times": []}, r"got \[\]"),
        ({"times": [0.0, 2.0, 1.0]}, r"rise from 0 or later, got \[0.0, 2.0, 1.0\]"),
        ({"times": [-1.0]}, "rise from 0 or later"),
        ({"depth": 0}, "got 0 and 1.0"),
        ({"target": -1.0}, "got 2 and -1.0"),
        ({"noise": (0.1,)}, r"got \(0.1,\) and"),
        ({"noise": (0.1, -0.1)}, r"noise must be at least 0"),
        ({"start": (0.0, 0.1)}, "start above 0"),
        ({"deficit": (1.0, -1.0)}, r"got \(1.0, -1.0\)"),
    ],
    ids=["none", "falling", "negative", "depth", "target", "one pathway", "noise", "start",
         "deficit"],
)  # fmt: skip
def test_what_does_not_fit_is_refused(settings: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"times": [1.0], "depth": 2}
    with pytest.raises(InputError, match=message):
        deep_linear_ode(**given | settings)
