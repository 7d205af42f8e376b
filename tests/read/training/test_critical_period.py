"""Deficits in training: two eyes that see one digit, and pathways whose shares are known."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.read.training.critical_period import Deficit, critical_period, pathway_shares
from tests._evidence import Evidence

KEY = "critical-learning-periods-emerge"
EYES = [ak.set("left:out", 0.0), ak.set("right:out", 0.0)]


class Eyes(nn.Module):
    """Two pathways of `depth` layers whose outputs are added; input (N, 2, D)."""

    def __init__(self, depth: int, activation: type[nn.Module], width: int = 32) -> None:
        super().__init__()

        def eye() -> nn.Sequential:
            sizes = [64, *[width] * (depth - 1)]
            hidden = [nn.Linear(i, width, bias=False) for i in sizes[:-1]]
            layers = [m for linear in hidden for m in (linear, activation())]
            return nn.Sequential(*layers, nn.Linear(sizes[-1], 10, bias=False))

        self.left, self.right = eye(), eye()

    def forward(self, x_N2D: Tensor) -> Tensor:
        seen: Tensor = self.left(x_N2D[:, 0]) + self.right(x_N2D[:, 1])
        return seen


def both(x_ND: Tensor, gen: torch.Generator) -> Tensor:
    """Show one image to both eyes, each with its own noise."""
    return x_ND[:, None] + 0.3 * torch.randn(len(x_ND), 2, 64, generator=gen)


@pytest.mark.slow
@pytest.mark.paper(KEY)
def test_depth_makes_the_early_deficit_of_one_eye_last(evidence: Evidence) -> None:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x_ND = torch.from_numpy(x - x.mean(0)).float() / 16
    target_NK = nn.functional.one_hot(torch.from_numpy(y), 10).float() - 0.1
    test_N2D = both(x_ND[1200:], torch.Generator().manual_seed(9))

    def final(seed: int, depth: int, activation: type[nn.Module] = nn.Identity) -> Tensor:
        """Return the (2, 2) left share by onset 0 or 250 and length 50 or 250, less half."""

        def train(deficit: Deficit) -> nn.Module:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                net = Eyes(depth, activation)
            gen = torch.Generator().manual_seed(seed)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            for step in range(deficit.end + 250):
                chosen = torch.randint(1200, (64,), generator=gen)
                seen = both(x_ND[chosen], gen)
                if deficit.at(step):
                    seen[:, 0] = 0
                loss: Any = (net(seen) - target_NK[chosen]).square().sum(1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            return net

        def left(model: Model) -> Tensor:
            return pathway_shares(model, test_N2D, EYES)[0]

        return critical_period(train, left, [0, 250], [50, 250]).effects

    runs = {depth: torch.stack([final(seed, depth) for seed in range(3)]) for depth in (1, 4)}
    lost = {depth: -effects[:, 0, 1] for depth, effects in runs.items()}
    evidence("share lost to an early, long deficit, one layer, largest of 3 seeds",
             measured=lost[1].max(), at_most=0.05)  # fmt: skip
    evidence("share lost, four layers, least of 3 seeds", measured=lost[4].min(), at_least=0.15)
    late = -runs[4][:, 1, 1] / lost[4]
    evidence("share lost to a late deficit / to an early one, four layers, largest of 3 seeds",
             measured=late.max(), at_most=0.5)  # fmt: skip
    short = -runs[4][:, 0, 0] / lost[4]
    evidence("share lost to a short deficit / to a long one, four layers, largest of 3 seeds",
             measured=short.max(), at_most=0.9)  # fmt: skip
    relu = final(0, 2, nn.ReLU)
    evidence("share lost, two layers with ReLU, early less late", measured=relu[1, 1] - relu[0, 1],
             at_least=0.1)  # fmt: skip


def test_shares_of_linear_pathways_are_their_strengths() -> None:
    net = Eyes(1, nn.Identity)
    weight = torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
    for eye, scale in ((net.left, 0.3), (net.right, -1.2)):
        eye[0].weight.data = scale * weight
    one_N2D = (torch.randn(7, 1, 64) + 3).expand(-1, 2, -1)
    shares = pathway_shares(Model(net), one_N2D, EYES)
    torch.testing.assert_close(shares, torch.tensor([0.2, 0.8]).double(), rtol=1e-5, atol=0)
    silent = pathway_shares(Model(net), torch.zeros(7, 2, 64), EYES)
    assert silent.isnan().all()


def test_a_sweep_says_onset_and_length_and_reads_tensors_at_rest() -> None:
    met = []

    def train(deficit: Deficit) -> nn.Module:
        met.append((deficit.onset, deficit.length, sum(map(deficit.at, range(100)))))
        net = nn.Linear(1, 1)
        nn.init.constant_(net.bias, 10 * deficit.onset + deficit.length)
        return net.train()

    def read(model: Model) -> Tensor:
        assert not model.module.training
        return model.module.get_parameter("bias") * torch.tensor([1.0, -1.0, 2.0])

    found = critical_period(train, read, [0, 3], [1, 2, 7])
    assert met == [(0, 0, 0), *((o, n, n) for o in (0, 3) for n in (1, 2, 7))]
    assert found.values_OL.shape == (2, 3, 3) and not found.values_OL.requires_grad
    assert found.values_OL[1, 2].tolist() == [37.0, -37.0, 74.0]
    assert found.undisturbed.tolist() == [0, 0, 0]
    assert torch.equal(found.effects, found.values_OL)


def test_pathways_of_a_language_model(smollm2: Model) -> None:
    parts = [ak.set("attn_out.3", 0.0), ak.set("mlp_out.3", 0.0)]
    shares = pathway_shares(smollm2, "A bird in the hand.", parts)
    assert shares.sum() == pytest.approx(1) and (shares > 0.05).all()


@pytest.mark.parametrize(
    ("onsets", "lengths"), [([], [1]), ([0], []), ([-1], [1]), ([0], [0, 3])], ids=str
)
def test_a_sweep_needs_steps(onsets: list[int], lengths: list[int]) -> None:
    with pytest.raises(InputError, match="onsets of at least 0 and lengths of at least 1"):
        critical_period(lambda _: nn.Linear(1, 1), lambda _: 0.0, onsets, lengths)


def test_shares_need_a_pathway() -> None:
    with pytest.raises(InputError, match="got none"):
        pathway_shares(Model(nn.Linear(1, 1)), torch.ones(1, 1), [])
