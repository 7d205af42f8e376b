"""How features near given ones collapse: the proximal model of the last layers of training.

Shapes: N rows, D width, K classes, T steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.read._base import Statistic
from actkit.read.classes._class_means import Classes, checked, class_index


@dataclass(frozen=True, slots=True)
class NearCollapse:
    """Features and classifier that fit each other, and the way there.

    Attributes:
        features_ND: float64 features at the end.
        weight_KD: The classifier that is best for them.
        nc1_T: tr(Sigma_W pinv(Sigma_B)) / K of the given features and after each step.
        loss_T: The objective, the same steps.
    """

    features_ND: Tensor
    weight_KD: Tensor
    nc1_T: Tensor
    loss_T: Tensor


@dataclass(frozen=True, slots=True)
class _Objective:
    """||H W^T - Y||^2 / (2 N) + decay / 2 ||W||^2 + pull / 2 ||H - H0||^2."""

    start_ND: Tensor
    target_NK: Tensor
    decay: float
    pull: float

    def loss(self, h_ND: Tensor, w_KD: Tensor) -> Tensor:
        fit = (h_ND @ w_KD.T - self.target_NK).square().sum() / len(h_ND)
        away = (h_ND - self.start_ND).square().sum()
        return (fit + self.decay * w_KD.square().sum() + self.pull * away) / 2

    def weight(self, h_ND: Tensor) -> Tensor:
        """Return the best classifier, Y^T H (H^T H + decay N I)^-1."""
        ridge_DD = self.decay * len(h_ND) * torch.eye(h_ND.shape[1]).to(h_ND)
        weight_DK: Tensor = torch.linalg.solve(h_ND.T @ h_ND + ridge_DD, h_ND.T @ self.target_NK)
        return weight_DK.T

    def features(self, w_KD: Tensor) -> Tensor:
        """Return the best features, (Y W + b H0) (W^T W + b I)^-1 with b = pull N."""
        b = self.pull * len(self.start_ND)
        gram_DD = w_KD.T @ w_KD + b * torch.eye(w_KD.shape[1]).to(w_KD)
        near_ND = self.target_NK @ w_KD + b * self.start_ND
        h_ND: Tensor = torch.linalg.solve(gram_DD, near_ND, left=False)
        return h_ND

    def descent(self, h_ND: Tensor) -> Tensor:
        """Return -N times the gradient in H where W is the best for H."""
        w_KD = self.weight(h_ND)
        fit_ND = (h_ND @ w_KD.T - self.target_NK) @ w_KD
        return -fit_ND - self.pull * len(h_ND) * (h_ND - self.start_ND)


@method(source="Tirer et al. 2023, arXiv:2210.16658, ICML", interface=Statistic)
def near_collapse(
    features_ND: Tensor, labels_N: Tensor, *, decay: float, pull: float, num_steps: int = 100
) -> NearCollapse:
    """Minimise ||H W^T - Y||^2 / (2 N) + decay / 2 ||W||^2 + pull / 2 ||H - H0||^2.

    The features H stay near given ones, H0, as those of deep layers must; the less they are
    pulled back, the more they collapse. As in the paper up to constant factors in `decay` and
    `pull`; Y is one-hot. W and H are set to their best in turn, so the loss never rises.

    Args:
        features_ND: H0, for example activations of an inner layer; computed in float64.
        labels_N: Integer classes, at least 2 and each with at least 2 rows.
        decay: Weight of the classifier's norm (> 0).
        pull: Weight of the distance from H0 (> 0).
        num_steps: Rounds of both steps (>= 1).

    Raises:
        InputError: A number is out of its range, labels do not fit or features are not finite.

    Example:
        >>> features_ND = torch.tensor([[3.0], [1.0], [-1.0], [-3.0]])
        >>> labels_N = torch.tensor([0, 0, 1, 1])  # NC1 is 1 / 4 / 2 at the start
        >>> found = near_collapse(features_ND, labels_N, decay=0.01, pull=0.01)
        >>> round(float(found.nc1_T[0]), 3), bool(found.nc1_T[-1] < 0.01)
        (0.125, True)
    """
    if not pull > 0:
        raise InputError(f"pull must be above 0, got {pull}")
    objective = _objective(features_ND, labels_N, decay, pull)

    def step(h_ND: Tensor) -> Tensor:
        return objective.features(objective.weight(h_ND))

    return _followed(objective, step, labels_N, num_steps)


def central_path(
    features_ND: Tensor,
    labels_N: Tensor,
    *,
    decay: float,
    pull: float = 0.0,
    rate: float = 0.1,
    num_steps: int = 100,
) -> NearCollapse:
    """Follow the gradient flow of the features while the classifier is always the best for them.

    H moves by -N times the gradient of the objective of `near_collapse`, in Euler steps. Without
    pull it is the flow for which the paper proves that NC1 falls.

    Args:
        features_ND: H0, as in `near_collapse`.
        labels_N: As in `near_collapse`.
        decay: Weight of the classifier's norm (> 0).
        pull: Weight of the distance from H0 (>= 0).
        rate: Time of one step (> 0); NC1 may rise where it is too long.
        num_steps: Number of steps (>= 1).

    Raises:
        InputError: As in `near_collapse`.
    """
    if not (pull >= 0 and rate > 0):
        raise InputError(f"pull must be at least 0 and rate above 0, got {pull} and {rate}")
    objective = _objective(features_ND, labels_N, decay, pull)

    def step(h_ND: Tensor) -> Tensor:
        return h_ND + rate * objective.descent(h_ND)

    return _followed(objective, step, labels_N, num_steps)


def _objective(features_ND: Tensor, labels_N: Tensor, decay: float, pull: float) -> _Objective:
    start_ND = checked(features_ND)
    _, index_N = class_index(labels_N, len(start_ND))
    if not decay > 0:
        raise InputError(f"decay must be above 0, got {decay}")
    return _Objective(start_ND, one_hot(index_N).double(), decay, pull)


def _followed(
    objective: _Objective, step: Callable[[Tensor], Tensor], labels_N: Tensor, num_steps: int
) -> NearCollapse:
    if num_steps < 1:
        raise InputError(f"num_steps must be at least 1, got {num_steps}")
    index_N, h_ND = objective.target_NK.argmax(1), objective.start_ND
    nc1, loss = [], []
    for t in track(range(num_steps + 1), "steps to near collapse"):
        h_ND = step(h_ND) if t else h_ND
        nc1.append(Classes.of(h_ND, index_N).variability())
        loss.append(float(objective.loss(h_ND, objective.weight(h_ND))))
    nc1_T, loss_T = torch.tensor([nc1, loss], dtype=torch.float64)
    return NearCollapse(h_ND, objective.weight(h_ND), nc1_T, loss_T)
