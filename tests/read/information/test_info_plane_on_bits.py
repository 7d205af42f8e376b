"""Compression on the task of 12 bits with and without weight decay.

Shapes: A networks (five seeds without weight decay, then the same five with it), B batch.
"""

from collections.abc import Callable
from itertools import pairwise
from math import log, sqrt

import pytest
import torch
from torch import Tensor, nn

from actkit.opening.checkpoints import Checkpoints
from actkit.read.information.info_plane import InfoPlane, info_plane
from tests._evidence import Evidence

SIZES = (12, 10, 7, 5, 4, 3, 2)
SEEDS, STEPS, DECAY = 5, 1500, 1e-3
MOMENTS = [0, 100, 300, 600, 1000, STEPS]
LAYERS = [f"{i}:out" for i in (1, 3, 5, 7, 9)]
Weights = list[tuple[Tensor, Tensor]]


def bits() -> tuple[Tensor, Tensor]:
    """Return all patterns of +-1 at 12 points evenly on a sphere, and a label that ignores turns.

    The label thresholds a quadratic form in the angles between the points, at its median.
    """
    patterns_B12 = (torch.arange(4096)[:, None] >> torch.arange(12) & 1).float()
    a, b = 1.0, (1 + sqrt(5)) / 2
    corners = [(0, s * a, t * b) for s in (1, -1) for t in (1, -1)]
    points = torch.tensor([c[i:] + c[:i] for c in corners for i in range(3)])  # an icosahedron
    cosine = points @ points.T / (a + b * b)
    kernel = cosine + (5 * cosine**3 - 3 * cosine) / 2 + (3 * cosine**2 - 1) / 2
    form_B = ((patterns_B12 @ kernel) * patterns_B12).sum(1)
    return 2 * patterns_B12 - 1, (form_B > form_B.median()).long()


def start(gain: float) -> Weights:
    made = []
    for layer, (width, out) in enumerate(pairwise(SIZES)):
        gens = [torch.Generator().manual_seed(100 * seed + layer) for seed in range(SEEDS)]
        weight = torch.stack([torch.randn(width, out, generator=g) for g in gens] * 2)
        bias = torch.zeros(2 * SEEDS, 1, out)
        made.append(((gain / sqrt(width) * weight).requires_grad_(), bias.requires_grad_()))
    return made


def train(act: Callable[[Tensor], Tensor], gain: float) -> dict[int, Weights]:
    """Train all networks at once on 80 % of the patterns; return their weights over time."""
    x_B, y_B = bits()
    gens = [torch.Generator().manual_seed(seed) for seed in range(SEEDS)]
    parts = [torch.randperm(4096, generator=g)[:3276] for g in gens]
    weights = start(gain)
    decay_A = torch.tensor([0.0] * SEEDS + [DECAY] * SEEDS)
    optimizer = torch.optim.Adam([p for pair in weights for p in pair], lr=3e-3)
    history = {}
    for step in range(STEPS + 1):
        if step in MOMENTS:
            history[step] = [(w.detach().clone(), b.detach().clone()) for w, b in weights]
        picks = [
            p[torch.randint(3276, (256,), generator=g)] for p, g in zip(parts, gens, strict=True)
        ]
        chosen = torch.stack(picks * 2)
        out = x_B[chosen]
        for weight, bias in weights[:-1]:
            out = act(torch.baddbmm(bias, out, weight))
        out = torch.baddbmm(weights[-1][1], out, weights[-1][0])
        loss = nn.functional.cross_entropy(out.flatten(0, 1), y_B[chosen].flatten()) * 2 * SEEDS
        loss = loss + sum((w.square().sum((1, 2)) * decay_A).sum() for w, _ in weights)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return history


def network(weights: Weights, index: int, act: type[nn.Module]) -> nn.Module:
    layers: list[nn.Module] = []
    for weight, bias in weights:
        linear = nn.Linear(*weight.shape[1:])
        linear.weight.data, linear.bias.data = weight[index].T.contiguous(), bias[index, 0]
        layers += [linear, act()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.slow
@pytest.mark.paper("adaptive-estimators-show-information")
@pytest.mark.parametrize("act", [nn.Tanh, nn.ReLU], ids=["tanh", "relu"])
def test_weight_decay_compresses_more(act: type[nn.Module], evidence: Evidence) -> None:
    history = train(act(), gain=1 if act is nn.Tanh else sqrt(2))
    x_B, y_B = bits()

    def plane(index: int) -> InfoPlane:
        networks = {step: network(w, index, act) for step, w in history.items()}
        return info_plane(Checkpoints(networks), x_B, y_B, LAYERS)

    planes = [plane(index) for index in range(2 * SEEDS)]
    score_A = torch.stack([p.compression_L.mean() for p in planes])
    least = min(float(p.y_CL[-1, -1]) for p in planes)
    assert least > 0.6 * log(2), "a dead network would count as compressed throughout"
    wins = int((score_A[SEEDS:] > score_A[:SEEDS]).sum())
    name = act.__name__
    evidence(f"seeds of 5 in which weight decay compresses more, {name}", measured=wins, at_least=4)
    evidence(f"mean compression added by weight decay, {name} (share of I(T; X))",
             measured=score_A[SEEDS:].mean() - score_A[:SEEDS].mean(), at_least=0.02)  # fmt: skip
