"""Means of classes and the spread about them.

Shapes: N rows, D width, K classes.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import hardshrink, one_hot

from actkit.core.errors import InputError


def class_index(labels_N: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return the (K,) classes, rising, and for each row the index of its class.

    Raises:
        InputError: Labels are no (N,) integers, there is one class, or a class has one row.
    """
    if labels_N.shape != (num_rows,) or labels_N.is_floating_point() or labels_N.is_complex():
        raise InputError(
            f"need one integer label for each of {num_rows} rows, got {labels_N.dtype} of shape "
            f"{tuple(labels_N.shape)}"
        )
    found = torch.unique(labels_N.cpu(), return_inverse=True, return_counts=True)
    classes_K, index_N, count_K = found
    if len(classes_K) < 2:
        raise InputError(f"need at least 2 classes, got {classes_K.tolist()}")
    if count_K.min() < 2:
        alone = classes_K[count_K < 2].tolist()
        raise InputError(f"need at least 2 rows in every class, got 1 in each of {alone}")
    return classes_K, index_N


def checked(features_ND: Tensor) -> Tensor:
    """Return (N, D) features as float64 on the CPU; they are not changed.

    Raises:
        InputError: They have other axes or are not floating point, or a row is not finite.
    """
    if features_ND.dim() != 2 or not features_ND.is_floating_point():
        raise InputError(
            f"features must be floating point (N, D), got {features_ND.dtype} of shape "
            f"{tuple(features_ND.shape)}"
        )
    num_bad = int((~features_ND.isfinite()).any(1).sum())
    if num_bad:
        raise InputError(f"features must be finite, {num_bad} of {len(features_ND)} rows are not")
    return features_ND.detach().cpu().double()


@dataclass(frozen=True, slots=True)
class Classes:
    """Features by class; classes count alike in the means, rows in the spread about them.

    Attributes:
        mean_D: Mean of the classes' means.
        means_KD: The classes' means, less `mean_D`.
        within_ND: The rows, less their classes' means.
    """

    mean_D: Tensor
    means_KD: Tensor
    within_ND: Tensor

    @classmethod
    def of(cls, features_ND: Tensor, index_N: Tensor) -> Self:
        """Take (N, D) float64 features and the index of each row's class."""
        onehot_NK = one_hot(index_N).to(features_ND)
        near_D = features_ND.mean(0)  # sums of rows far from zero would lose digits
        off_ND = features_ND - near_D
        means_KD = (onehot_NK / onehot_NK.sum(0)).T @ off_ND
        middle_D = means_KD.mean(0)
        noise = 1e-14 * float(features_ND.abs().max())  # what rounding leaves of equal rows
        apart_KD, within_ND = means_KD - middle_D, off_ND - means_KD[index_N]
        return cls(near_D + middle_D, hardshrink(apart_KD, noise), hardshrink(within_ND, noise))

    def variability(self) -> float:
        """Return tr(Sigma_W pinv(Sigma_B)) / K, the within-class spread in units of the between.

        inf if all classes have one mean, NaN if all rows are equal.
        """
        num_classes = len(self.means_KD)
        if not self.means_KD.any():
            return float(self.within_ND.square().sum() / 0.0)
        _, scale_J, axes_JD = torch.linalg.svd(self.means_KD, full_matrices=False)
        keep = int((scale_J > scale_J[0] * 1e-10).sum())
        rank = min(keep, num_classes - 1)
        between_J = scale_J[:rank].square() / num_classes
        within_J = (self.within_ND @ axes_JD[:rank].T).square().mean(0)
        return float((within_J / between_J).sum() / num_classes)

    def ratio(self) -> float:
        """Return tr(Sigma_W) / tr(Sigma_B); inf and NaN as in `variability`."""
        within = self.within_ND.square().sum() / len(self.within_ND)
        return float(within / (self.means_KD.square().sum() / len(self.means_KD)))
