"""Perturbations of systems that contract or expand by a known factor.

Shapes: D width.
"""

import pytest
import torch
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.read.network.stream_perturbation import perturbation_ratios
from tests._evidence import Evidence
from tests.contract import check_restored
from tests.core import tiny

WIDTH, DEPTH = 7, 6
LATER = [f"{n}:out" for n in range(1, DEPTH)]
DELTA = tiny.uneven(WIDTH, seed=3, dtype=torch.float64)


class Affine(nn.Module):
    """Turns and scales a state about a fixed point."""

    def __init__(self, factor: float, seed: int) -> None:
        super().__init__()
        turn = torch.linalg.qr(tiny.uneven(WIDTH, WIDTH, seed=seed, dtype=torch.float64)).Q
        self.matrix, self.offset = factor * turn, tiny.uneven(WIDTH, seed=9, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        turned: Tensor = (x - self.offset) @ self.matrix + self.offset
        return turned


def system(factor: float) -> Model:
    return Model(nn.Sequential(*(Affine(factor, seed) for seed in range(DEPTH))))


@pytest.mark.paper("transformer-dynamics")
@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_a_contraction_brings_a_path_back(factor: float, evidence: Evidence) -> None:
    inputs = tiny.uneven(5, WIDTH, dtype=torch.float64)
    found = perturbation_ratios(system(factor), inputs, "0:out", DELTA, LATER)
    for steps, measured in enumerate(found.ratio_K, start=1):
        wanted = factor**steps
        evidence(f"map of factor {factor}: ratio of distances after {steps} layers",
                 measured=measured, equals=wanted, tolerance=0.01 * wanted)  # fmt: skip
    torch.testing.assert_close(found.random_RK, found.ratio_K.expand(4, -1))
    assert found.sites == tuple(LATER) and found.num_rows == 5


def test_ratios_are_those_of_two_runs() -> None:
    model = tiny.model()
    delta = tiny.uneven(tiny.WIDTH, seed=1)
    found = perturbation_ratios(
        model, tiny.PROMPTS, "resid_post.0", delta, "resid_post.*", num_random=2, seed=5
    )
    assert found.sites == ("resid_post.1", "resid_post.2") and found.random_RK.shape == (2, 2)
    where = ak.Where(tokens="last")
    edit = ak.add("resid_post.0", delta, where=where)
    one = model.run(tiny.PROMPTS, record="resid_post.*")
    other = model.run(tiny.PROMPTS, record="resid_post.*", edits=[edit])
    gaps = [(other[s] - one[s])[:, -1].norm(dim=-1).double() for s in one]
    wanted = [float((gap / gaps[0]).mean()) for gap in gaps[1:]]
    assert found.ratio_K.tolist() == pytest.approx(wanted, rel=1e-4)
    lengths = [one[s][:, -1].norm(dim=-1).double().mean() for s in one]
    assert found.growth_K.tolist() == pytest.approx([float(n / lengths[0]) for n in lengths[1:]])
    assert found.num_rows == 3
    far = perturbation_ratios(
        model, tiny.PROMPTS, "resid_post.0", 100 * delta, "resid_post.*", num_random=2, seed=5
    )
    assert (far.random_RK / found.random_RK - 1).abs().min() > 0.1  # they are as long as delta


def test_deltas_may_differ_by_row() -> None:
    model, site = tiny.model(), "resid_post.0"
    deltas = tiny.uneven(3, tiny.WIDTH, seed=1)
    together = perturbation_ratios(model, tiny.PROMPTS, site, deltas, "resid_post.2", num_random=0)
    alone = [
        perturbation_ratios(model, [p], site, d, "resid_post.2", num_random=0).ratio_K
        for p, d in zip(tiny.PROMPTS, deltas, strict=True)
    ]
    torch.testing.assert_close(together.ratio_K, torch.stack(alone).mean(0), rtol=1e-4, atol=0)
    assert together.random_RK.shape == (0, 1)


def test_seeds_and_hooks() -> None:
    model, delta = tiny.model(), tiny.uneven(tiny.WIDTH)

    def draws(seed: int) -> Tensor:
        found = perturbation_ratios(
            model, tiny.PROMPTS, "resid_post.0", delta, "resid_post.2", seed=seed
        )
        return found.random_RK

    assert torch.equal(draws(0), draws(0)) and not torch.equal(draws(0), draws(1))
    check_restored(model.module, lambda: draws(0))


def test_a_push_must_move_something() -> None:
    inputs = torch.zeros(2, WIDTH, dtype=torch.float64)
    for delta in (torch.zeros(WIDTH), torch.full((WIDTH,), 1e-30)):
        with pytest.raises(InputError, match="must move a state"):
            perturbation_ratios(system(1.0), inputs, "0:out", delta.double(), LATER)
