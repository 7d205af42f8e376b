"""Whether a score of sequences tells a group of them apart, and a classifier to compare it with.

Shapes: T times, N sequences, D width, P permutations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.core.errors import InputError


@dataclass(frozen=True, slots=True)
class GroupComparison:
    """Whether a score tells two groups of sequences apart.

    Attributes:
        auc: Probability that a member of the group scores above another sequence, ties half.
        p_value: Share of relabelings (the real one too) whose AUC is as far from 0.5.
    """

    auc: float
    p_value: float


def principal_units(sequences: Sequence[Tensor], num: int = 4) -> list[Tensor]:
    """Return each sequence's (T, num) scores on the first principal components of all rows.

    Args:
        sequences: (T, D) activations of consecutive tokens each, without the first token of a
            text where that is massive.
        num: How many components.

    Raises:
        InputError: Sequences do not fit together or are not finite, or vary in fewer directions.
    """
    _check(sequences)
    rows_ND = torch.cat(list(sequences)).double()
    mean_D = rows_ND.mean(0)
    _, strength, axes = torch.linalg.svd(rows_ND - mean_D, full_matrices=False)
    rank = int((strength > 1e-9 * strength[:1]).sum())
    if num > rank:
        raise InputError(f"rows must vary in at least {num} directions, got {rank}")
    return [(sequence.double() - mean_D) @ axes[:num].T for sequence in sequences]


def span_scores(
    sequences: Sequence[Tensor],
    labels_N: Tensor,
    groups: Sequence[int] | None = None,
    num_folds: int = 5,
    seed: int = 0,
) -> Tensor:
    """Return each sequence's score by a classifier of span representations that has not seen it.

    A span's representation is the mean of its rows; the classifier is logistic regression on
    standardised units, fitted on the other folds.

    Args:
        sequences: (T, D) activations each.
        labels_N: bool.
        groups: Sequences of one group share a fold; pass it for variants of one text.
        num_folds: How many folds.
        seed: Of the folds.

    Raises:
        InputError: Sequences do not fit together or are not finite, or labels do not fit them.
    """
    _check(sequences)
    _check_labels(labels_N, len(sequences))
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    spans_ND = torch.stack([sequence.double().mean(0) for sequence in sequences]).cpu().numpy()
    folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    groups = list(range(len(sequences))) if groups is None else list(groups)
    return torch.from_numpy(
        cross_val_predict(
            model,
            spans_ND,
            labels_N.cpu().numpy(),
            groups=groups,
            cv=folds,
            method="decision_function",
        )
    )


def compare_groups(
    scores_N: Tensor, labels_N: Tensor, num_permutations: int = 999, seed: int = 0
) -> GroupComparison:
    """Test whether a score, such as phi, differs between a group of sequences and the others.

    Args:
        scores_N: One finite score for each sequence.
        labels_N: bool, the group.
        num_permutations: How often the labels are shuffled.
        seed: Of the shuffles.

    Raises:
        InputError: Labels do not fit, a score is not finite, or a side is empty.

    Example:
        >>> found = compare_groups(torch.tensor([3.0, 4, 1, 2]), torch.tensor([1, 1, 0, 0]) > 0)
        >>> found.auc
        1.0
    """
    num, num_in = len(scores_N), int(labels_N.sum())
    _check_labels(labels_N, num)
    if num_bad := num - int(scores_N.isfinite().sum()):
        raise InputError(f"scores must be finite, {num_bad} of {num} are not")
    below_NN = (scores_N[:, None] > scores_N).double() + (scores_N[:, None] == scores_N) / 2
    rank_N = below_NN.sum(1) + 0.5
    gen = torch.Generator().manual_seed(seed)
    order_PN = torch.rand(num_permutations, num, generator=gen).argsort(1)
    group_PN = torch.cat([labels_N[None], labels_N[order_PN]]).double()
    auc_P = (group_PN @ rank_N - num_in * (num_in + 1) / 2) / (num_in * (num - num_in))
    far_P = (auc_P - 0.5).abs()
    return GroupComparison(float(auc_P[0]), float((far_P >= far_P[0] - 1e-12).double().mean()))


def _check(sequences: Sequence[Tensor]) -> None:
    """Refuse sequences of unlike widths, empty ones and what is not finite."""
    shapes = [tuple(sequence.shape) for sequence in sequences]
    if not shapes or any(len(s) != 2 or not s[0] or s[1] != shapes[0][-1] for s in shapes):
        raise InputError(f"sequences must have shape (T, D) with one D, got {shapes[:5]}")
    if num_bad := sum(not bool(sequence.isfinite().all()) for sequence in sequences):
        raise InputError(f"sequences must be finite, {num_bad} of {len(shapes)} are not")


def _check_labels(labels_N: Tensor, num: int) -> None:
    if labels_N.dtype != torch.bool or labels_N.shape != (num,) or not 0 < labels_N.sum() < num:
        raise InputError(
            f"labels must be bool, of both kinds and one for each of {num}, got "
            f"{int(labels_N.count_nonzero())} true in shape {tuple(labels_N.shape)}"
        )
