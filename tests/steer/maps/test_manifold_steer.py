"""Steering along a curve: splines by hand, and a small transformer that adds modulo 7.

Shapes: C values, D width, S places on a path.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import procrustes
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.steer.maps.manifold_steer import ManifoldSteer
from actkit.steer.maps.manifold_steer._manifold import ConceptCurve
from tests._evidence import Evidence
from tests.core import tiny

NUM, SITE = 7, "resid_post.1"
SHARES = [k / 15 for k in range(16)]
PAIRS = [(i, (i + way) % NUM, way) for i in range(NUM) for way in (3, -3)]


def rows(values_ND: Tensor) -> dict[int, Tensor]:
    """One input a value, for a network whose first module passes them on."""
    return {i: value[None] for i, value in enumerate(values_ND)}


def passing(width: int, num_answers: int) -> Model:
    torch.manual_seed(0)
    return ak.open(nn.Sequential(nn.Identity(), nn.Linear(width, num_answers)))


def test_a_circle_is_traced_by_its_points() -> None:
    """A periodic spline through 12 points stays within 1e-3 of the circle."""
    angle = torch.arange(12) * torch.pi / 6
    circle = ConceptCurve.through(torch.stack([angle.cos(), angle.sin()], 1), cyclic=True)
    s = torch.linspace(-5, 20, 301, dtype=torch.float64)
    want = torch.stack([(s * torch.pi / 6).cos(), (s * torch.pi / 6).sin()], 1)
    torch.testing.assert_close(circle(s), want, rtol=0, atol=1e-3)
    inside = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    torch.testing.assert_close(
        circle.distance(inside).float(), torch.tensor([1.0, 2.0]), atol=1e-3, rtol=0
    )


def test_an_open_curve_is_exact_for_a_cubic_and_stops_at_its_ends() -> None:
    s = torch.arange(6.0, dtype=torch.float64)
    cubic = ConceptCurve.through((s**3 - 4 * s + 1)[:, None], cyclic=False)
    between = torch.tensor([0.3, 2.5, 4.9], dtype=torch.float64)
    torch.testing.assert_close(cubic(between)[:, 0], between**3 - 4 * between + 1)
    ends = cubic(torch.tensor([-2.0, 9.0], dtype=torch.float64))[:, 0]
    torch.testing.assert_close(ends, torch.tensor([1.0, 106.0], dtype=torch.float64))


@pytest.mark.parametrize("cyclic", [False, True], ids=["line", "cycle"])
def test_the_state_moves_by_the_splines_difference(cyclic: bool) -> None:
    """Against scipy in the full width; each row has its own strength."""
    from scipy.interpolate import CubicSpline

    points, x = tiny.uneven(6, 9), tiny.uneven(3, 9, seed=1)
    model = passing(9, 6)
    steer = ManifoldSteer("0:out", cyclic=cyclic).fit(model, rows(points)).between(4, 1)
    doses = torch.tensor([0.0, 0.4, 1.0])
    found = model.run(x, ["0:out"], steer.edits(doses))["0:out"]
    knots = torch.cat([points, points[:1]]) if cyclic else points
    spline = CubicSpline(
        range(len(knots)), knots.double(), bc_type="periodic" if cyclic else "not-a-knot"
    )
    way = 3 if cyclic else -3
    want = x + torch.from_numpy(spline((4 + way * doses.double()) % 6) - spline(4))
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[0], x[0])


def test_few_components_leave_the_rest_of_the_state() -> None:
    points, model = tiny.uneven(6, 9), passing(9, 6)
    steer = ManifoldSteer("0:out", num_components=2).fit(model, rows(points))
    off = (points - points.mean(0)).double()
    want = torch.linalg.svd(off).Vh[:2]
    basis = steer.basis_.double()
    torch.testing.assert_close(basis.T @ basis, want.T @ want, rtol=1e-5, atol=1e-5)
    moved = model.run(points[:1], ["0:out"], steer.edits(0.5))["0:out"] - points[:1]
    torch.testing.assert_close(moved.double(), moved.double() @ want.T @ want, rtol=1e-4, atol=1e-5)


def test_bad_input_is_refused() -> None:
    points, model = tiny.uneven(6, 9), passing(9, 6)
    steer = ManifoldSteer("0:out").fit(model, rows(points))
    with pytest.raises(InputError, match=r"got \[9\]"):
        steer.between(0, 9)
    with pytest.raises(InputError, match="at least 2 values to inputs, got 1"):
        ManifoldSteer("0:out").fit(model, rows(points[:1]))
    with pytest.raises(InputError, match="at least 3 values to inputs, got 2"):
        ManifoldSteer("0:out", cyclic=True).fit(model, rows(points[:2]))
    with pytest.raises(InputError, match=r"got none of \[1\]"):
        ManifoldSteer("0:out").fit(model, {0: points[:1], 1: points[:0]})
    with pytest.raises(InputError, match=r"1 to 5, .* got 6"):
        ManifoldSteer("0:out", num_components=6).fit(model, rows(points))
    with pytest.raises(InputError, match=r"1 to 0, .* got 0"):
        ManifoldSteer("0:out").fit(model, rows(points[:1].expand(4, -1)))
    with pytest.raises(InputError, match="need 6 answers, one a value, got 2"):
        ManifoldSteer("0:out", answers=[0, 1]).fit(model, rows(points))
    with pytest.raises(InputError, match="different outputs below 6"):
        ManifoldSteer("0:out", answers=[0, 1, 2, 3, 4, 6]).fit(model, rows(points))
    with pytest.raises(InputError, match="must be finite, got 9 NaN or infinite"):
        ManifoldSteer("0:out").fit(model, rows(points * torch.nan))


def adder() -> tuple[Any, dict[int, list[Tensor]]]:
    """A transformer of two blocks that learnt a + b modulo 7, and its inputs by their sum."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=NUM + 1, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=8,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    net: Any = LlamaForCausalLM(config)
    pairs = torch.cartesian_prod(torch.arange(NUM), torch.arange(NUM))
    inputs = torch.cat([pairs, torch.full((len(pairs), 1), NUM)], 1)
    sums = pairs.sum(1) % NUM
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3, weight_decay=0.3)
    for _ in range(400):
        logits = net(input_ids=inputs).logits[:, -1]
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(logits, sums))
        optimizer.step()
    return net.eval(), {c: list(inputs[sums == c]) for c in range(NUM)}


@pytest.fixture(scope="module")
def data() -> dict[int, list[Tensor]]:
    return {}


@pytest.fixture(scope="module")
def model(data: dict[int, list[Tensor]]) -> Model:
    net, inputs = adder()
    data |= inputs
    return ak.open(net)


@pytest.fixture(scope="module")
def steer(model: Model, data: dict[int, list[Tensor]]) -> ManifoldSteer:
    return ManifoldSteer(SITE, cyclic=True).fit(model, data)


@pytest.mark.paper("manifold-steering-reveals-shared")
def test_the_curve_joins_the_centroids(
    model: Model, steer: ManifoldSteer, data: dict[int, list[Tensor]], evidence: Evidence
) -> None:
    centroids = torch.stack(
        [model.run(own, record=SITE)[SITE][:, -1].double().mean(0) for own in data.values()]
    )
    places = torch.arange(NUM, dtype=torch.float64)
    on_curve = steer.curve_(places) @ steer.basis_.double()
    error = (on_curve - (centroids - centroids.mean(0))).norm(dim=-1) / centroids.norm(dim=-1)
    evidence("curve less centroids, share of their length", measured=error.max(), at_most=1e-6)
    s = torch.linspace(0, NUM, 50, dtype=torch.float64)
    turn = (steer.curve_(s + NUM) - steer.curve_(s)).abs().max()
    evidence("curve a period later less the curve", measured=turn, at_most=1e-6)
    bare = model.run(data[2], logits=True).logits
    same = model.run(data[2], edits=steer.between(2, 5).edits(0.0), logits=True).logits
    stay = model.run(data[2], edits=steer.between(2, 2).edits(0.7), logits=True).logits
    assert bare is not None and same is not None and stay is not None
    change = max((same - bare).abs().max(), (stay - bare).abs().max())
    evidence("logit change by steering to where the state is", measured=change, at_most=0)


@pytest.mark.slow
@pytest.mark.paper("manifold-steering-reveals-shared")
def test_paths_along_the_curve_visit_what_lies_between(
    model: Model, steer: ManifoldSteer, data: dict[int, list[Tensor]], evidence: Evidence
) -> None:
    in_order: dict[bool, list[float]] = {False: [], True: []}
    distance: dict[bool, list[Tensor]] = {False: [], True: []}
    for start, stop, way in PAIRS:
        want = [(start + k * way // 3) % NUM for k in range(4)]
        for linear in (False, True):
            trace = steer.between(start, stop, linear).trace(model, data[start], SHARES)
            in_order[linear].append(float(trace.visited == want))
            distance[linear].append(trace.distance_S.mean())
    share = {linear: float(np.mean(found)) for linear, found in in_order.items()}
    evidence("paths along the curve that visit the values between in order (share)",
             measured=share[False], at_least=0.8)  # fmt: skip
    evidence("straight paths that do (share)", measured=share[True], at_most=0.4)
    ratio = torch.stack(distance[True]).mean() / torch.stack(distance[False]).mean()
    evidence("Hellinger distance of straight paths to the behaviour manifold, ratio to the curve's",
             measured=ratio, at_least=2)  # fmt: skip


@pytest.mark.slow
@pytest.mark.paper("manifold-steering-reveals-shared")
def test_following_the_behaviour_recovers_the_curve(
    model: Model, steer: ManifoldSteer, data: dict[int, list[Tensor]], evidence: Evidence
) -> None:
    shares = [k / 8 for k in range(9)]
    found, straight = [], []
    for start in range(NUM):
        path = steer.between(start, (start + 3) % NUM).invert(model, data[start], shares)
        curve = steer.curve_(start + 3 * torch.tensor(shares).double()).numpy()
        line = curve[:1] + np.array(shares)[:, None] * (curve[-1:] - curve[:1])
        found.append(1 - procrustes(curve, path.double().numpy())[2])
        straight.append(1 - procrustes(curve, line)[2])
    evidence("Procrustes R2 of optimised paths and the curve, mean of 7",
             measured=np.mean(found), at_least=0.8)  # fmt: skip
    evidence("the same of straight lines", measured=np.mean(straight), at_most=0.6)


class Ruler(nn.Module):
    """Says which of 7 marks on a line a state lies near."""

    def __init__(self) -> None:
        super().__init__()
        self.state = nn.Identity()
        self.direction = tiny.uneven(12)

    def forward(self, x: Tensor) -> Tensor:
        place = self.state(x) @ self.direction / self.direction.square().sum()
        return -torch.square(place[:, None] - torch.arange(float(NUM)))


@pytest.mark.paper("manifold-steering-reveals-shared")
def test_a_straight_concept_is_steered_the_same_either_way(evidence: Evidence) -> None:
    net = Ruler()
    model, noise = ak.open(net), 0.05 * tiny.uneven(NUM, 40, 12, seed=1)
    data = {c: c * net.direction + noise[c] for c in range(NUM)}
    steer = ManifoldSteer("state:out").fit(model, data)
    curve, line = (
        steer.between(1, 4, linear).trace(model, list(data[1]), SHARES) for linear in (False, True)
    )
    change = (curve.probs_SA - line.probs_SA).abs().sum(-1).max() / 2
    evidence("total variation between the two paths, largest", measured=change, at_most=0.05)
    moved = (curve.probs_SA[-1] - curve.probs_SA[0]).abs().sum() / 2
    evidence("total variation between the path's ends", measured=moved, at_least=0.5)


def test_it_is_saved_and_steers_generation(
    model: Model, steer: ManifoldSteer, data: dict[int, list[Tensor]], tmp_path: Path
) -> None:
    path = steer.between(1, 4)
    path.save(tmp_path / "edits", model, 0.8)
    loaded = ak.load_edits(tmp_path / "edits", model)
    one = model.run(data[1], edits=loaded, logits=True).logits
    other = model.run(data[1], edits=path.edits(0.8), logits=True).logits
    assert one is not None and other is not None
    assert torch.equal(one, other)
    assert (other[:, -1].argmax(-1) != 1).all()
    assert torch.equal(other[:, :-1], model.run(data[1], logits=True).logits[:, :-1])


def test_the_rest_counts_as_one_answer(
    model: Model, steer: ManifoldSteer, data: dict[int, list[Tensor]]
) -> None:
    trace = steer.between(0, 2).trace(model, data[0], [0.0, 1.0])
    assert trace.probs_SA.shape == (2, NUM + 1)
    torch.testing.assert_close(trace.probs_SA.sum(-1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(trace.other, trace.probs_SA[:, NUM])
    bare = model.run(data[0], logits=True).logits
    assert bare is not None
    probs = bare[:, -1].double().softmax(-1).mean(0)
    torch.testing.assert_close(trace.probs_SA[0], probs)
    torch.testing.assert_close(trace.entropy[0], -(probs * probs.log()).sum())
    assert trace.distance_S[0] < 1e-6
