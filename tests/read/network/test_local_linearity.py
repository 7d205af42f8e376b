"""Blocks against their linear models: exact on known functions, and on SmolLM2."""

import pytest
import torch
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.read.network.local_linearity import local_linearity
from tests._evidence import Evidence
from tests.contract import check_restored, check_seeded
from tests.core import tiny

TEXTS = ["The old harbour of the town was", "She opened the letter and", "Most birds can"]


class Cube(nn.Module):
    """x^3 of each unit."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x^3."""
        return x**3


def test_error_of_a_cube_in_closed_form() -> None:
    """(x + d)^3 - x^3 - 3 x^2 d = 3 x d^2 + d^3; with one unit d = +-size x."""
    model = ak.open(nn.Sequential(nn.Identity(), Cube()))
    x = torch.tensor([[9.0, 2.0], [9.0, -3.0], [9.0, 0.7]], dtype=torch.float64)[..., None]
    found = local_linearity(model, x, [("0:out", "1:out")], (0.3, 0.1))
    assert found.sizes == (0.1, 0.3)
    for size, error in zip(found.sizes, found.error_SE[0].tolist(), strict=True):
        by_signs = [size + share * size**2 / 3 for share in (-1, -1 / 3, 1 / 3, 1)]
        assert any(error == pytest.approx(mean, rel=1e-9) for mean in by_signs)


def test_a_linear_block_has_no_error() -> None:
    torch.manual_seed(0)
    model = ak.open(nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).double())
    x = tiny.uneven(4, 3, 5, dtype=torch.float64)
    found = local_linearity(model, x, [("0:out", "1:out")])
    assert (found.error_SE < 1e-12).all()


def test_the_network_is_left_and_the_seed_decides() -> None:
    model = tiny.model()
    check_restored(model.module, lambda: local_linearity(model, tiny.PROMPTS))
    check_seeded(lambda seed: local_linearity(model, tiny.PROMPTS, seed=seed))


def test_bad_sizes_and_stages_are_refused() -> None:
    model = tiny.model()
    for sizes in [(0.1,), (0.1, 0.1), (0.0, 0.1), (0.1, float("inf"))]:
        with pytest.raises(InputError, match="sizes must be at least 2 different positive"):
            local_linearity(model, tiny.PROMPTS, sizes=sizes)
    with pytest.raises(InputError, match=r"resid_pre.1 must depend on what is moved"):
        local_linearity(model, tiny.PROMPTS, [("resid_post.1", "resid_pre.1")])


@pytest.mark.slow
@pytest.mark.paper("local-linearity-llms-enables")
def test_blocks_are_locally_linear(smollm2: Model, evidence: Evidence) -> None:
    """Blocks 2 to 29, of which the last tokens' states are moved at random."""
    stages = [(f"resid_pre.{n}", f"resid_post.{n}") for n in range(2, 30)]
    found = local_linearity(smollm2, TEXTS, stages)
    evidence("largest relative error at 5 %", measured=found.error_SE[:, 0].max(), at_most=0.1)
    evidence("largest relative error at 20 %", measured=found.error_SE[:, 2].max(), at_most=0.4)
    evidence("least slope over blocks", measured=found.slope_S.min(), at_least=0.7)
    evidence("largest slope over blocks", measured=found.slope_S.max(), at_most=1.3)
