"""The protocol of read: truths are what they say, and the estimators that should win do."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import actkit as ak
from actkit.core.errors import InputError
from actkit.read.protocol import PROTOCOL, QUANTITIES, Quantity

each = pytest.mark.parametrize("quantity", QUANTITIES, ids=str)


def planted(name: str, seed: int) -> tuple[list[np.ndarray[Any, Any]], float]:
    (quantity,) = [q for q in QUANTITIES if q.name == name]
    data, truth = quantity.plant(torch.Generator().manual_seed(seed))
    return [x.double().numpy() for x in data], truth


def test_the_planted_rank_is_the_number_of_eigenvalues_above_the_noise() -> None:
    for seed in range(3):
        (acts,), truth = planted("rank", seed)
        assert (np.linalg.eigvalsh(np.cov(acts.T)) > 1).sum() == truth


def test_the_planted_share_is_that_of_small_entries() -> None:
    (acts,), truth = planted("sparsity", 1)
    assert (np.abs(acts) < 0.5).mean() == pytest.approx(truth, abs=1e-7)


def test_the_planted_information_is_that_of_the_correlation() -> None:
    (x, y), truth = planted("information", 2)
    rho = np.corrcoef(x[:, 0], y[:, 0])[0, 1]
    assert -math.log(1 - rho**2) / 2 == pytest.approx(truth, abs=0.06)


def test_the_planted_edge_is_where_the_fourth_eigenvalue_ends() -> None:
    (acts,), truth = planted("edge", 3)
    values = np.linalg.eigvalsh(np.cov(acts.T))[::-1]
    assert values[3] == pytest.approx(truth, rel=0.03) and values[2] > 1.2 * truth


def test_the_planted_similarity_is_that_of_very_many_rows() -> None:
    quantity = next(q for q in QUANTITIES if q.name == "similarity")
    gen = torch.Generator().manual_seed(4)
    _, truth = quantity.plant(gen)
    gen = torch.Generator().manual_seed(4)
    scale = torch.linspace(0.5, 3, 61, dtype=torch.float64)
    mix = torch.randn(61, 61, generator=gen, dtype=torch.float64) / math.sqrt(61)
    x = torch.randn(40_001, 61, dtype=torch.float64, generator=gen) * scale
    y = x @ mix + 3 * torch.randn(40_001, 61, dtype=torch.float64, generator=gen)
    assert ak.get("cka")(x, y) == pytest.approx(truth, rel=0.02)


@each
def test_seeds_draw_new_problems_and_the_same_one_again(quantity: Quantity) -> None:
    one, same, other = (
        quantity.plant(torch.Generator().manual_seed(seed))[0][0] for seed in (0, 0, 1)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


BEST = {
    "rank": {"spikes"},
    "sparsity": {"threshold_0.1"},
    "information": {"kraskov", "ebab"},
    "edge": {"mp_spectrum"},
    "similarity": {"cka_unbiased"},
}


@each
def test_the_estimator_that_is_made_for_it_is_closest(quantity: Quantity) -> None:
    board = ak.compare("read", task=quantity.name, seeds=3)
    assert {*board.scores()} == {*quantity.estimators}
    assert not any(run.error for run in board.runs)
    assert next(iter(board.scores())) in BEST[quantity.name]
    assert all(run.values["cost"] > 0 for run in board.runs)
    assert board.front()


def test_a_users_own_estimator_and_quantity_take_part() -> None:
    def perfect(x: torch.Tensor) -> float:
        return float(x.sum())

    def plant(_: torch.Generator) -> Any:
        return (torch.full((4, 1), 0.5),), 2.0

    own = Quantity("sum", plant, {"half": lambda x: float(x.sum()) / 2})
    board = ak.compare("read", task=own, methods={"mine": perfect, "half": None}, seeds=2)
    scores = board.scores()
    assert [*scores] == ["mine", "half"] and scores["mine"]["relative error"].mean == 0
    assert scores["half"]["bias"].mean == -0.5


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(InputError, match="rank, sparsity, information, edge, similarity"):
        ak.compare("read", task="colour")
    with pytest.raises(InputError, match="must be a Quantity"):
        PROTOCOL.methods(3)
