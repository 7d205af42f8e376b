"""Whether a linear decoder carries over to unseen conditions: cross-condition generalisation.

Shapes: N rows, D width, C conditions.
"""

from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.read._base import Statistic
from actkit.read.classes._dichotomy import by_condition


@method(
    source="Bernardi et al. 2020, Cell 183, 954-967; used in arXiv:2401.13558", interface=Statistic
)
def ccgp(
    acts_ND: Tensor,
    condition_N: Any,
    dichotomy_C: Any,
    num_held_out: int = 1,
    regularisation: float = 1.0,
) -> float:
    """Return the accuracy of a linear decoder of a dichotomy on conditions that it never saw.

    As in the paper: a linear support vector machine learns the side from all but
    `num_held_out` conditions on each side, is tested on those, and the accuracy is averaged over
    all ways to hold them out; every condition weighs the same, however many rows it has.

    Args:
        acts_ND: (N, D) activations.
        condition_N: (N,) condition of each row, 0 to C - 1.
        dichotomy_C: (C,) side of each condition: two different values.
        num_held_out: Conditions on each side that are tested (>= 1, fewer than a side has).
        regularisation: The machine's penalty C on errors (> 0), for activations that are divided
            by their root mean square distance from the mean.

    Returns:
        Accuracy in [0, 1], 0.5 at chance, 1 for an abstract (factorised) code; below 0.5 where
        the direction turns round between conditions, as in an exclusive or.

    Raises:
        InputError: Axes do not fit or rows are not finite; a side has fewer than 2 conditions,
            or not more than are held out; or all rows are alike.

    Example:
        >>> square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [5.0, 0.0], [5.0, 1.0]])
        >>> ccgp(square, [0, 1, 2, 3], [0, 0, 1, 1]), ccgp(square, [0, 1, 2, 3], [0, 1, 1, 0])
        (1.0, 0.0)
    """
    from sklearn.svm import SVC

    groups, one, two = by_condition(acts_ND, condition_N, dichotomy_C)
    if not 1 <= num_held_out < min(len(one), len(two)):
        raise InputError(
            f"num_held_out must be at least 1 and below the {min(len(one), len(two))} conditions "
            f"of a side, got {num_held_out}"
        )
    groups = _standardised(groups)
    held_out = [list(combinations(side, num_held_out)) for side in (one, two)]
    accuracies = []
    for left, right in track(list(product(*held_out)), "holding out conditions"):
        seen = [c for c in range(len(groups)) if c not in left + right]
        labels = [c in two for c in seen for _ in groups[c]]
        machine = SVC(
            kernel="linear", C=regularisation, class_weight="balanced", random_state=0
        )  # which draws from the global generator else, for nothing
        machine.fit(torch.cat([groups[c] for c in seen]).numpy(), labels)
        for c in left + right:
            accuracies.append(float((machine.predict(groups[c].numpy()) == (c in two)).mean()))
    return sum(accuracies) / len(accuracies)


def _standardised(groups: list[Tensor]) -> list[Tensor]:
    """Return the rows from their mean, in units of their root mean square distance from it."""
    rows_ND = torch.cat(groups)
    mean_D = rows_ND.mean(0)
    scale = float((rows_ND - mean_D).square().sum(1).mean().sqrt())
    if not scale > 0:
        raise InputError("a decoder needs activations that vary: all rows are alike")
    return [(group - mean_D) / scale for group in groups]
