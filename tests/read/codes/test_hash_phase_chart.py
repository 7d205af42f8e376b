"""The chart of codes over width, training and samples, always beside the untrained network."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actkit.core.errors import InputError
from actkit.model import Model
from actkit.read.codes.hash_phase_chart import PHASES, Cell, PhaseChart, hash_phase_chart
from actkit.read.codes.neural_code import neural_code
from tests._evidence import Evidence
from tests.contract import acts
from tests.read.codes.test_neural_code import digits, training

BOUNDS = {8: (0.5, 1.0, 0.6), 32: (0.0, 0.2, 0.85), 256: (0.0, 0.01, 0.95)}
"""By width the least and most redundancy, and the least accuracy of 9 nearest codes."""
X, Y = acts(40, 3, dtype=torch.float32), torch.arange(40) % 4


def still(width: int, x: Tensor, y: Tensor) -> Iterator[tuple[int, nn.Module]]:
    torch.manual_seed(width)
    yield 0, nn.Sequential(nn.Linear(3, width), nn.ReLU())
    torch.manual_seed(width + len(x))
    yield 5, nn.Sequential(nn.Linear(3, width), nn.ReLU())


def test_every_cell_says_what_its_code_says() -> None:
    chart = hash_phase_chart(still, [1, 30], [12, 40], (X, Y), (X[:9], Y[:9]))
    assert [(c.width, c.num_samples, c.step) for c in chart.cells] == [
        (w, n, s) for w in (1, 30) for n in (12, 40) for s in (0, 5)
    ]
    torch.manual_seed(30 + 12)
    model = Model(nn.Sequential(nn.Linear(3, 30), nn.ReLU()))
    code, test = neural_code(model, X[:12]), neural_code(model, X[:9])
    cell = chart.cells[5]
    assert cell.redundancy == code.redundancy()
    assert cell.knn_accuracy == code.knn_accuracy(Y[:12], test, Y[:9])
    assert cell.cluster_accuracy == code.cluster_accuracy(Y[:12])
    assert chart.untrained(cell) is chart.cells[4]
    assert chart.cells[0].cluster_accuracy != chart.cells[0].cluster_accuracy  # 2 codes, 4 classes


@pytest.mark.parametrize(
    ("redundancy", "accuracy", "phase"),
    [(0.9, 0.5, 0), (0.9, 0.9, 1), (0.3, 0.5, 1), (0.02, 0.8, 1), (0.05, 0.85, 2), (0, 0.9, 2)],
)
def test_regimes(redundancy: float, accuracy: float, phase: int) -> None:
    chart = PhaseChart((Cell(4, 0, 9, redundancy, 0.5, accuracy), Cell(9, 0, 9, 0.0, 0.5, 0.9)))
    assert chart.phases() == [PHASES[phase], PHASES[2]]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"widths": []}, "need widths"),
        ({"sample_sizes": [41]}, r"9 to the 40 training rows, got \[4\] and \[41\]"),
        ({"sample_sizes": [8]}, "sample sizes from 9"),
        ({"sample_sizes": []}, "sample sizes from 9"),
        ({"train": lambda w, x, y: {3: nn.ReLU()}}, "start at step 0, got 3"),
    ],
    ids=["widths", "many", "few", "sizes", "trained"],
)
def test_what_cannot_be_charted_is_refused(change: dict[str, Any], rule: str) -> None:
    given: dict[str, Any] = {"train": still, "widths": [4], "sample_sizes": [20]}
    with pytest.raises(InputError, match=rule):
        hash_phase_chart(**{**given, **change}, data=(X, Y), test=(X, Y))


@pytest.mark.paper("neural-networks-behave-hash")
def test_wide_codes_of_digits_are_unique_and_classify(evidence: Evidence) -> None:
    x, y, test_x, test_y = digits()
    chart = hash_phase_chart(training, [8, 32, 256], [1200], (x, y), (test_x, test_y))
    untrained, trained = chart.cells[::2], chart.cells[1::2]
    for before, after in zip(untrained, trained, strict=True):
        least, most, accuracy = BOUNDS[after.width]
        at = f"width {after.width}"
        evidence(f"redundancy, {at}", measured=after.redundancy, at_least=least, at_most=most)
        evidence(f"redundancy that training adds, {at}",
                 measured=after.redundancy - before.redundancy, at_least=0)  # fmt: skip
        evidence(f"accuracy of 9 nearest codes, {at}", measured=after.knn_accuracy,
                 at_least=accuracy)  # fmt: skip
        evidence(f"accuracy of 9 nearest codes, untrained, {at}", measured=before.knn_accuracy,
                 at_least=accuracy - 0.1)  # fmt: skip
    redundancy, accuracies = [c.redundancy for c in trained], [c.knn_accuracy for c in trained]
    assert redundancy == sorted(redundancy, reverse=True) and accuracies == sorted(accuracies)
    assert chart.phases()[1::2] == list(PHASES)
    wide = Model(list(training(256, x, y))[-1][1])
    code, test = neural_code(wide, x), neural_code(wide, test_x)
    evidence("accuracy of one-versus-one logistic regression on codes, width 256",
             measured=code.logreg_accuracy(y, test, test_y), at_least=0.95)  # fmt: skip
