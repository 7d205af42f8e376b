from itertools import combinations, permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.read.classes.parallelism_score import parallelism_score
from tests._evidence import Evidence
from tests.contract import acts, check_unchanged

CUBE = torch.tensor([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], dtype=torch.float64)


def turned(num: int, width: int) -> Tensor:
    """Orthonormal directions."""
    return torch.as_tensor(torch.linalg.qr(acts(width, num)).Q.T)


def noisy(means_CD: Tensor, num: int = 7, size: float = 1.0) -> tuple[Tensor, Tensor]:
    """Rows around each condition's mean that leave the mean where it is, in mixed order."""
    gen = torch.Generator().manual_seed(0)
    off = torch.randn(len(means_CD), num, means_CD.shape[1], generator=gen, dtype=torch.float64)
    rows = (means_CD[:, None] + size * (off - off.mean(1, keepdim=True))).flatten(0, 1)
    mixed = torch.randperm(len(rows), generator=gen)
    return rows[mixed], torch.arange(len(means_CD)).repeat_interleave(num)[mixed]


def test_the_best_pairing_equals_a_loop_over_all() -> None:
    means_CD, side = acts(8, 5), [0, 1, 1, 0, 1, 0, 0, 1]
    one, two = [0, 3, 5, 6], [1, 2, 4, 7]
    scores = []
    for order in permutations(two):
        steps = [means_CD[b] - means_CD[a] for a, b in zip(one, order, strict=True)]
        cosines = [float(torch.cosine_similarity(s, t, 0)) for s, t in combinations(steps, 2)]
        scores.append(sum(cosines) / len(cosines))
    assert parallelism_score(*noisy(means_CD), side) == pytest.approx(max(scores), rel=1e-9)
    context = [0, 3, 2, 1, 0, 2, 3, 1]  # pairs 0-4, 3-7, 5-2, 6-1
    fixed = list(permutations(two)).index((4, 7, 2, 1))
    found = parallelism_score(*noisy(means_CD), side, context)
    assert found == pytest.approx(scores[fixed], rel=1e-9)


def test_parallel_partners_are_found_in_any_order() -> None:
    one_CD = acts(7, 5)
    order = [3, 6, 0, 5, 1, 4, 2]
    means_CD = torch.cat([one_CD, one_CD[order] + acts(1, 5, seed=1)])
    assert parallelism_score(means_CD, range(14), [0] * 7 + [1] * 7) == pytest.approx(1, abs=1e-9)
    context = [*range(7), *order]
    fixed = parallelism_score(means_CD, range(14), [0] * 7 + [1] * 7, context)
    assert fixed == pytest.approx(1, abs=1e-9)


def test_rotation_shift_and_scale_change_nothing() -> None:
    rows, condition = noisy(acts(6, 5))
    side, rotation_DD = [0, 0, 1, 1, 0, 1], torch.linalg.qr(acts(5, 5)).Q
    moved = parallelism_score(9 * rows @ rotation_DD - 50, condition, side)
    assert moved == pytest.approx(parallelism_score(rows, condition, side), rel=1e-9)
    check_unchanged(lambda: parallelism_score(rows, condition, side), rows, condition)


def test_a_context_may_be_needed_and_eight_pairs_are_possible() -> None:
    many, side = torch.randn(16, 3000, generator=torch.Generator().manual_seed(0)), [0, 1] * 8
    assert -0.1 < parallelism_score(many, range(16), side) < 0.1
    more = acts(18, 4)
    with pytest.raises(InputError, match="at most 8 conditions, got 9"):
        parallelism_score(more, range(18), [0, 1] * 9)
    context = [i // 2 for i in range(18)]
    assert -1 <= parallelism_score(more, range(18), [0, 1] * 9, context) <= 1


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"dichotomy_C": [0, 0, 0, 1]}, "two sides of at least 2"),
        ({"dichotomy_C": [0, 0, 1, 2]}, "two sides of at least 2"),
        ({"dichotomy_C": [0, 0, 0, 0]}, "two sides of at least 2"),
        ({"dichotomy_C": [0, 0, 1]}, "numbered 0 to 2"),
        ({"dichotomy_C": [0, 0, 1, 1, 1]}, "numbered 0 to 4"),
        ({"condition_N": [0, 1, 2]}, r"got shapes \(4, 3\) and \(3,\)"),
        ({"condition_N": [0, 0, 1, 2]}, "numbered 0 to 3, .* got \\[0, 1, 2\\]"),
        ({"acts_ND": torch.full((4, 3), torch.nan)}, "finite, 4 rows"),
        ({"acts_ND": torch.ones(4, 3)}, "different means"),
        ({"context_C": [0, 0, 1, 1]}, "every context once"),
        ({"context_C": [0, 1, 0]}, "a context for 4 conditions, got 3"),
    ],
    ids=["three", "sides", "one", "few", "many", "rows", "empty", "nan", "same", "twice", "short"],
)
def test_what_is_no_dichotomy_is_refused(change: dict[str, Any], rule: str) -> None:
    given = {"acts_ND": acts(4, 3), "condition_N": [0, 1, 2, 3], "dichotomy_C": [0, 0, 1, 1]}
    with pytest.raises(InputError, match=rule):
        parallelism_score(**{**given, **change})


def test_sides_of_unequal_size_are_refused() -> None:
    with pytest.raises(InputError, match="as many conditions, got 2 and 3"):
        parallelism_score(acts(5), range(5), [0, 0, 1, 1, 1])


@pytest.mark.paper("task-structure-nonlinearity-jointly")
def test_a_hypercube_is_parallel_and_random_points_are_not(evidence: Evidence) -> None:
    rows, condition = noisy(4 * CUBE @ turned(3, 20) + 5)
    for axis in range(3):
        score = parallelism_score(rows, condition, CUBE[:, axis])
        evidence(f"parallelism score of a hypercube, axis {axis + 1}", measured=score, equals=1,
                 tolerance=1e-9)  # fmt: skip
    for seed in range(4):
        gen = torch.Generator().manual_seed(seed)
        random_CD = torch.randn(8, 1000, generator=gen, dtype=torch.float64)
        score = parallelism_score(*noisy(random_CD), CUBE[:, 0])
        evidence(f"parallelism score of random points, size, seed {seed}", measured=abs(score),
                 at_most=0.1)  # fmt: skip
