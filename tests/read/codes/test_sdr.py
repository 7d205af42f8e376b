"""Error probabilities of sparse codes: counted, simulated, and held against SmolLM2's."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.read.codes.sdr import SDR, binarise, collisions, effective_cells
from tests._evidence import Evidence
from tests.contract import acts, check_seeded, check_unchanged

DRAWS = 2_000_000


def overlaps(sdr: SDR, num_patterns: int, num_draws: int, seed: int = 0) -> Any:
    """Simulate how many of the first s cells random patterns cover together, for 1 to M of them."""
    gen = np.random.default_rng(seed)
    covered = np.zeros((num_patterns, num_draws), dtype=np.int64)
    on = np.zeros((num_draws, sdr.num_synapses), dtype=bool)
    for m in range(num_patterns):
        keys = gen.random((num_draws, sdr.num_cells), dtype=np.float32)
        limit = np.partition(keys, sdr.num_active - 1, axis=1)[:, sdr.num_active - 1]
        on |= keys[:, : sdr.num_synapses] <= limit[:, None]
        covered[m] = on.sum(1)
    return covered


def test_false_matches_and_unions_equal_a_count_of_all_patterns() -> None:
    sdr, patterns = SDR(7, 3, 2), list(combinations(range(7), 3))
    for threshold in (1, 2):
        one = [len({0, 1} & set(p)) >= threshold for p in patterns]
        two = [len({0, 1} & (set(p) | set(q))) >= threshold for p in patterns for q in patterns]
        assert sdr.false_match(threshold) == pytest.approx(np.mean(one), rel=1e-12)
        assert sdr.false_match(threshold, 2) == pytest.approx(np.mean(two), rel=1e-12)
    union = [len(set(p) | set(q)) / 7 for p in patterns for q in patterns]
    assert sdr.density(2) == pytest.approx(np.mean(union), rel=1e-12)


def test_misses_and_the_best_threshold_equal_sums() -> None:
    sdr = SDR(256, 16, 3)
    assert sdr.miss(2, 0.2) == pytest.approx(0.2**3 + 3 * 0.8 * 0.2**2, rel=1e-12)
    assert sdr.miss(3, 0.0) == 0 and sdr.miss(1, 1.0) == 1
    large = SDR(2048, 40, 20)
    for noise, patterns in ((0.1, 1), (0.5, 1), (0.2, 30)):
        errors = [large.miss(t, noise) + large.false_match(t, patterns) for t in range(1, 21)]
        assert large.best_threshold(noise, patterns) == 1 + int(np.argmin(errors))


def test_the_binomial_is_the_limit_of_many_cells() -> None:
    wide = SDR(200_000, 10_000, 10)
    narrow = SDR(256, 16, 12)
    assert narrow.binomial_match(4) == pytest.approx(4 / 3 * narrow.false_match(4), rel=0.01)
    for patterns in (1, 7):
        exact = wide.false_match(3, patterns)
        assert wide.binomial_match(3, patterns) == pytest.approx(exact, rel=0.01)


def test_capacity_is_the_last_number_that_is_safe() -> None:
    sdr = SDR(2048, 40, 20)
    num = sdr.capacity(12, 1e-6)
    assert sdr.false_match(12, num) <= 1e-6 < sdr.false_match(12, num + 1) and num > 1
    assert SDR(64, 16, 4).capacity(1, 0.01) == 0


def test_the_largest_activations_are_on() -> None:
    acts_ND = acts(9, 6, dtype=torch.bfloat16)
    codes = binarise(acts_ND, 2)
    for row, code in zip(acts_ND, codes, strict=True):
        assert code.sum() == 2 and row[code].min() >= row[~code].max()
    assert binarise(torch.zeros(3, 5), 2).tolist() == [[True, True, False, False, False]] * 3
    check_unchanged(lambda: binarise(acts_ND, 2), acts_ND)


def random_codes(num: int, cells: int, active: int) -> Tensor:
    return binarise(torch.rand(num, cells, generator=torch.Generator().manual_seed(0)), active)


def test_random_codes_use_all_cells_and_copies_of_cells_do_not_count() -> None:
    codes = random_codes(400, 300, 30)
    pairs = [float((a & b).sum()) for a, b in combinations(codes[:60], 2)]
    assert effective_cells(codes[:60]) == pytest.approx(900 / np.mean(pairs), rel=1e-9)
    assert effective_cells(codes) == pytest.approx(300, rel=0.02)
    silent = torch.nn.functional.pad(codes, (0, 700))
    assert effective_cells(silent) == pytest.approx(effective_cells(codes), rel=1e-12)


def test_random_codes_err_as_predicted() -> None:
    found = collisions(random_codes(3000, 128, 16), 6, noise=0.4, num_draws=20_000)
    assert found.match == pytest.approx(found.predicted_match, abs=0.01)
    assert found.false_match == pytest.approx(found.predicted_false_match, rel=0.1)
    assert found.effective_false_match == pytest.approx(found.predicted_false_match, rel=0.05)
    apart = collisions(torch.eye(2).repeat_interleave(3, 1) > 0, 2, noise=0.0)
    assert (apart.match, apart.false_match) == (1, 0)  # a row is never its own other row
    codes = random_codes(50, 128, 16)
    check_seeded(lambda seed: collisions(codes, 6, noise=0.4, seed=seed))


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda: SDR(10, 11, 2), "need 1 <= synapses <= active <= cells, got 2, 11 and 10"),
        (lambda: SDR(10, 3, 4), "got 4, 3 and 10"),
        (lambda: SDR(10, 3, 2).false_match(3), "threshold of 1 to 2 .* got 3 and 1"),
        (lambda: SDR(10, 3, 2).false_match(1, 0), "at least 1 pattern, got 1 and 0"),
        (lambda: SDR(10, 3, 2).miss(1, 1.5), r"noise must be in \[0, 1\], got 1.5"),
        (lambda: SDR(10, 3, 2).capacity(1, 1.0), r"chance must be in \(0, 1\), got 1"),
        (lambda: binarise(torch.ones(2, 3), 4), r"got shape \(2, 3\) and 4"),
        (lambda: binarise(torch.full((2, 3), torch.nan), 1), "2 rows hold NaN"),
        (
            lambda: effective_cells(torch.ones(1, 3)),
            r"at least 2 rows of codes, got shape \(1, 3\)",
        ),
        (lambda: collisions(torch.eye(3).cumsum(1) > 0, 1), "equally many cells on"),
    ],
    ids=["a", "s", "theta", "M", "noise", "chance", "k", "nan", "one row", "uneven"],
)
def test_sizes_that_do_not_fit_are_refused(call: Any, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        call()


@pytest.mark.paper("how-do-neurons-operate")
def test_formulas_equal_the_paper_s_numbers_and_simulation(evidence: Evidence) -> None:
    sdr = SDR(256, 16, 12)
    evidence("false match, 256 cells, 16 on, 12 synapses, threshold 4",
             measured=sdr.false_match(4), equals=0.003771, tolerance=5e-7)  # fmt: skip
    drawn = np.random.default_rng(0).hypergeometric(16, 240, 12, DRAWS)
    # 5 % is 1.4 standard errors of 2e5 draws (1.057 at seed 0) and 4.3 of 2e6.
    evidence("Monte Carlo of it over the formula", measured=(drawn >= 4).mean() / 0.003770876,
             equals=1, tolerance=0.05)  # fmt: skip
    evidence("false match, 2048 cells, 40 on, 20 synapses, threshold 10 (1e-13)",
             measured=SDR(2048, 40, 20).false_match(10) * 1e13, equals=3.9,
             tolerance=0.05)  # fmt: skip
    simulated = (overlaps(sdr, 50, 20_000) >= 4).mean(1)
    predicted = np.array([sdr.false_match(4, m) for m in range(1, 51)])
    paper = np.array([sdr.binomial_match(4, m) for m in range(1, 51)])
    off = abs(simulated / predicted - 1)
    evidence("unions of 2 to 50 patterns, simulation against the exact formula, worst error",
             measured=off[1:].max(), at_most=0.1)  # fmt: skip
    evidence("the same against the paper's binomial, from 3 patterns on",
             measured=abs(simulated / paper - 1)[2:].max(), at_most=0.1)  # fmt: skip


@pytest.mark.paper("how-do-neurons-operate")
def test_codes_of_smollm2_are_recognised_under_dropout(smollm2: Model, evidence: Evidence) -> None:
    rec = smollm2.run(ak.data.text(num_samples=12), record="mlp_hidden.15")
    acts_ND, rows = rec.flat("mlp_hidden.15")
    acts_ND = acts_ND[rows.position > 0]
    codes = binarise(acts_ND, round(0.05 * acts_ND.shape[1]))
    for num_synapses in (10, 20, 40):
        found = collisions(codes, num_synapses, noise=0.2)
        evidence(f"match under 20 % dropout, {num_synapses} synapses, threshold {found.threshold}",
                 measured=found.match, at_least=0.99)  # fmt: skip
    # Cells fire unevenly and together, so other rows match far more often than random codes of
    # 1536 cells would; the effective number of cells accounts for it where few synapses watch.
    found = collisions(codes, 10, noise=0.2)
    evidence("false matches of other rows over those of random codes, 10 synapses",
             measured=found.false_match / found.predicted_false_match, at_least=10)  # fmt: skip
    evidence("the same for random codes of the effective number of cells",
             measured=found.false_match / found.effective_false_match, at_least=0.5,
             at_most=2)  # fmt: skip
    evidence("effective number of cells of 1536", measured=found.effective_cells, at_most=1000)
