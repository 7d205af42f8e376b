from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.svm import SVC

from actkit.core.errors import InputError
from actkit.read.classes.ccgp import ccgp
from tests._evidence import Evidence
from tests.contract import acts, check_unchanged
from tests.read.classes.test_parallelism_score import CUBE, noisy, turned

SIDE = [0, 1, 1, 0, 1, 0]


@pytest.mark.parametrize("num", [1, 2])
def test_accuracy_equals_a_loop_over_the_held_out_conditions(num: int) -> None:
    rows, condition = noisy(acts(6, 4), num=9, size=3.0)
    keep = torch.arange(54) % 5 >= condition // 2  # conditions have unequal numbers of rows
    rows, condition = rows[keep], condition[keep]
    scale = float((rows - rows.mean(0)).square().sum(1).mean().sqrt())
    x, c = ((rows - rows.mean(0)) / scale).numpy(), condition.numpy()
    y, found = np.array(SIDE)[c], []
    for one, two in product(combinations([0, 3, 5], num), combinations([1, 2, 4], num)):
        test = np.isin(c, one + two)
        share = y[~test].sum() / (~test).sum()
        machine = SVC(kernel="linear", class_weight={0: 0.5 / (1 - share), 1: 0.5 / share})
        machine.fit(x[~test], y[~test])
        right = machine.predict(x) == y
        found.append(np.mean([right[c == held].mean() for held in one + two]))
    assert 0.2 < np.mean(found) < 0.95
    assert ccgp(rows, condition, SIDE, num) == pytest.approx(np.mean(found), rel=1e-12)


def test_rotation_and_scale_change_little_and_nothing_given_is_changed() -> None:
    rows, condition = noisy(acts(6, 4), num=9, size=3.0)
    once = ccgp(rows, condition, SIDE)
    moved = ccgp(7 * rows @ torch.linalg.qr(acts(4, 4)).Q + 30, condition, SIDE)
    assert moved == pytest.approx(once, abs=0.02)
    check_unchanged(lambda: ccgp(rows, condition, SIDE), rows, condition)


def test_parity_turns_round_between_conditions() -> None:
    rows, condition = noisy(3 * CUBE, size=0.1)
    assert ccgp(rows, condition, CUBE.sum(1) % 2) < 0.2


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"num_held_out": 2}, "at least 1 and below the 2 conditions of a side, got 2"),
        ({"num_held_out": 0}, "got 0"),
        ({"acts_ND": torch.ones(4, 3)}, "vary"),
        ({"condition_N": [0, 1, 2]}, r"got shapes \(4, 3\) and \(3,\)"),
        ({"dichotomy_C": [0, 1, 1, 1]}, "two sides of at least 2"),
    ],
    ids=["all", "none", "same", "rows", "side"],
)
def test_what_cannot_be_held_out_is_refused(change: dict[str, Any], rule: str) -> None:
    given = {"acts_ND": acts(4, 3), "condition_N": [0, 1, 2, 3], "dichotomy_C": [0, 0, 1, 1]}
    with pytest.raises(InputError, match=rule):
        ccgp(**{**given, **change})


@pytest.mark.paper("task-structure-nonlinearity-jointly")
def test_a_hypercube_generalises_and_random_points_do_not(evidence: Evidence) -> None:
    rows, condition = noisy(4 * CUBE @ turned(3, 20) + 5, size=0.3)
    for axis in range(3):
        accuracy = ccgp(rows, condition, CUBE[:, axis])
        evidence(f"CCGP of a hypercube, axis {axis + 1} (share)", measured=accuracy, equals=1,
                 tolerance=0)  # fmt: skip
    random = [
        ccgp(*noisy(4 * torch.randn(8, 100, generator=torch.Generator().manual_seed(s)).double()),
             CUBE[:, 0])
        for s in range(4)
    ]  # fmt: skip
    evidence("CCGP of random points, mean of 4 seeds (share)", measured=np.mean(random),
             at_most=0.7)  # fmt: skip
