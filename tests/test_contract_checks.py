"""Each check of the contract lets a sound method pass and catches the fault it is for."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import contract
from tests.contract import acts, check_same, probs, rows


def centred(acts_ND: Tensor) -> Tensor:
    return acts_ND - torch.arange(acts_ND.shape[1]).to(acts_ND)


def in_place(acts_ND: Tensor) -> Tensor:
    acts_ND[3, 1] += 1e-9
    return acts_ND


def over_the_batch(acts_ND: Tensor) -> Tensor:
    return acts_ND - acts_ND.mean(0)


def by_place(acts_ND: Tensor) -> Tensor:
    return acts_ND * torch.arange(len(acts_ND))[:, None]


class Fitted:
    def __init__(self, remembers: bool = False, centre: float = 0.0) -> None:
        self.remembers, self.mean_D, self.centre = remembers, torch.zeros(1), centre

    def fit(self, acts_ND: Tensor) -> None:
        self.mean_D = acts_ND.mean(0) + (0.5 * self.mean_D if self.remembers else 0)


def own_generator(seed: int) -> Tensor:
    return torch.rand(3, generator=torch.Generator().manual_seed(seed))


def sets_the_global_seed(seed: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.rand(3)


def draws_from_numpy(seed: int) -> Tensor:
    np.random.rand()
    return own_generator(seed)


def draws_from_python(seed: int) -> Tensor:
    random.random()
    return own_generator(seed)


class Forgetful(Fitted):
    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"mean_D": torch.zeros(5)}


NET = nn.Sequential(nn.Linear(5, 3), nn.Tanh())


def leaves_a_hook(fail: bool = False) -> None:
    NET[0].register_forward_hook(lambda *_: None)
    if fail:
        raise RuntimeError


def leaves_an_attribute() -> None:
    NET[1].scale = torch.ones(1)


def changes_a_weight() -> None:
    with torch.no_grad():
        next(NET.parameters()).mul_(1.5)


def cleans_up(fail: bool = False) -> None:
    handle = NET[0].register_forward_hook(lambda *_: None)
    try:
        if fail:
            raise RuntimeError
    finally:
        handle.remove()


def refit(remembers: bool) -> None:
    contract.check_refit(
        lambda: Fitted(remembers), lambda f, acts_ND: f.fit(acts_ND), lambda f: f.mean_D
    )


def copies(kind: type[Fitted]) -> None:
    made = kind()
    made.fit(acts())
    contract.check_copies(made, lambda f: f.mean_D)


def unchanged(call: Callable[[Tensor], object]) -> None:
    given_ND = acts()
    contract.check_unchanged(lambda: call(given_ND), given_ND)


class Mean:
    """A reading that merges as it should."""

    def __init__(self) -> None:
        self.sum_D, self.num = torch.zeros(5, dtype=torch.float64), 0

    def update(self, acts_ND: Tensor) -> None:
        self.sum_D, self.num = self.sum_D + acts_ND.sum(0), self.num + len(acts_ND)

    def merge(self, other: Any) -> Any:
        self.sum_D, self.num = self.sum_D + other.sum_D, self.num + other.num
        return self

    def result(self) -> Tensor:
        return self.sum_D / self.num


class MeanOfMeans(Mean):
    def merge(self, other: Any) -> Any:
        if other.num:
            self.sum_D = (self.result() + other.result()) / 2 if self.num else other.result()
            self.num = 1
        return self


class Emptied(Mean):
    def merge(self, other: Any) -> Any:
        super().merge(other)
        other.num += 1
        return self


class NoSelf(Mean):
    def merge(self, other: Any) -> Any:
        super().merge(other)


class LastWins(Mean):
    def update(self, acts_ND: Tensor) -> None:
        self.sum_D, self.num = acts_ND.sum(0), len(acts_ND)


class Hoarder(Mean):
    def update(self, acts_ND: Tensor) -> None:
        super().update(acts_ND)
        self.kept = [*getattr(self, "kept", []), acts_ND]


def merged(kind: type[Mean]) -> None:
    contract.check_merged(kind, lambda r, start, stop: r.update(acts()[start:stop]), 37)


def grown(kind: type[Mean]) -> None:
    contract.check_constant_size(kind(), lambda r: r.update(acts()))


ONE = torch.ones(2, 3, dtype=torch.float64)
SOUND: dict[str, Callable[[], None]] = {
    "unchanged": lambda: unchanged(centred),
    "subset": lambda: contract.check_subset(centred, acts()),
    "refit": lambda: refit(remembers=False),
    "seeded": lambda: contract.check_seeded(own_generator),
    "copies": lambda: copies(Fitted),
    "restored": lambda: contract.check_restored(NET, cleans_up),
    "restored after an error": lambda: contract.check_restored(
        NET, lambda: cleans_up(fail=True), RuntimeError
    ),
    "merged": lambda: merged(Mean),
    "constant size": lambda: grown(Mean),
    "like": lambda: contract.check_like(ONE, (2, 3), ONE),
    "finite": lambda: contract.check_finite({"a": (1.0, ONE), "b": "text"}),
    "same": lambda: check_same({"a": ONE * torch.nan}, {"a": ONE * torch.nan}),
}
FAULTS: dict[str, Callable[[], None]] = {
    "input written in place": lambda: unchanged(in_place),
    "mean over the batch": lambda: contract.check_subset(over_the_batch, acts()),
    "depends on the place in the batch": lambda: contract.check_subset(by_place, acts()),
    "second fit remembers the first": lambda: refit(remembers=True),
    "sets the global seed": lambda: contract.check_seeded(sets_the_global_seed),
    "draws from numpy's global state": lambda: contract.check_seeded(draws_from_numpy),
    "draws from python's global state": lambda: contract.check_seeded(draws_from_python),
    "ignores its seed": lambda: contract.check_seeded(lambda _: own_generator(7)),
    "state lost in a pickle": lambda: copies(Forgetful),
    "merge ignores sizes": lambda: merged(MeanOfMeans),
    "merge changes the other": lambda: merged(Emptied),
    "merge returns nothing": lambda: merged(NoSelf),
    "stream keeps the last piece": lambda: merged(LastWins),
    "keeps the rows": lambda: grown(Hoarder),
    "hook left": lambda: contract.check_restored(NET, leaves_a_hook),
    "hook left after an error": lambda: contract.check_restored(
        NET, lambda: leaves_a_hook(fail=True), RuntimeError
    ),
    "attribute left": lambda: contract.check_restored(NET, leaves_an_attribute),
    "weight changed": lambda: contract.check_restored(NET, changes_a_weight),
    "error swallowed": lambda: contract.check_restored(NET, int, ValueError),
    "other shape": lambda: contract.check_like(ONE.T, (2, 3), ONE),
    "other dtype": lambda: contract.check_like(ONE.float(), (2, 3), ONE),
    "other device": lambda: contract.check_like(ONE.to("meta"), (2, 3), ONE),
    "NaN in a tensor": lambda: contract.check_finite([ONE, ONE * torch.nan]),
    "infinite number": lambda: contract.check_finite({"a": float("inf")}),
    "last digit differs": lambda: check_same(ONE, ONE + 1e-15),
    "number differs": lambda: check_same({"a": 1.0}, {"a": 1.0001}, rtol=1e-6),
    "text differs": lambda: check_same(("a",), ("b",)),
}


@pytest.fixture(autouse=True)
def fresh_net() -> None:
    global NET
    NET = nn.Sequential(nn.Linear(5, 3), nn.Tanh())


@pytest.mark.parametrize("name", SOUND)
def test_sound_method_passes(name: str) -> None:
    SOUND[name]()


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(name: str) -> None:
    state = torch.get_rng_state()
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        FAULTS[name]()
    torch.set_rng_state(state)


def test_results_of_different_structure_are_not_the_same() -> None:
    with pytest.raises(ValueError, match="shorter"):
        check_same([ONE, ONE], [ONE])


def test_data_are_uncentred_and_uneven() -> None:
    acts_ND = acts()
    spread_D = acts_ND.std(0)
    assert (acts_ND.mean(0).abs() > 0.5).sum() >= 3
    assert spread_D.max() > 5 * spread_D.min()


def test_probabilities_are_causal_within_their_text() -> None:
    probs_NHS, position_N = probs(), rows().position
    torch.testing.assert_close(probs_NHS.sum(-1), torch.ones(37, 3, dtype=torch.float64))
    for n, position in enumerate(position_N.tolist()):
        assert (probs_NHS[n, :, : position + 1] > 0).all()
        assert (probs_NHS[n, :, position + 1 :] == 0).all()


def test_rows_number_each_text_from_its_own_first_token() -> None:
    assert rows(20).position.tolist() == [*range(13), *range(5), 0, 1]
    assert rows(20).sample.tolist() == [0] * 13 + [1] * 5 + [2] * 2


@dataclass(frozen=True)
class Result:
    mean_D: Tensor
    num: int


def test_leaves_walks_dataclasses_mappings_and_sequences() -> None:
    found = list(contract.leaves({"a": Result(ONE, 3), "b": [(1.0, "x")]}))
    assert [f for f in found if not isinstance(f, Tensor)] == ["a", 3, "b", 1.0, "x"]
