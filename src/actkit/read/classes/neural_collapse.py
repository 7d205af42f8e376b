"""How far features have collapsed onto a simplex of class means: NC1 to NC4.

Shapes: N rows, D width, K classes.
"""

from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.read._base import Statistic
from actkit.read.classes._class_means import Classes, checked, class_index


@dataclass(frozen=True, slots=True)
class NeuralCollapse:
    """The four properties; 0 is full collapse but for `nc4`, where it is 1.

    Attributes:
        nc1: tr(Sigma_W pinv(Sigma_B)) / K: the variability within classes.
        nc1_ratio: tr(Sigma_W) / tr(Sigma_B), the cheap form.
        nc2_angles: Distance of the cosines between centred class means from those of a simplex,
            (K I - 1 1^T) / (K - 1), as a share of their own Frobenius norm.
        nc2_norms: Standard deviation of the centred class means' lengths, as a share of the mean.
        nc3: || W / ||W|| - M / ||M|| || of the classifier and the centred means; None without one.
        nc4: Share of rows where the classifier says the nearest class mean; None without one.
    """

    nc1: float
    nc1_ratio: float
    nc2_angles: float
    nc2_norms: float
    nc3: float | None
    nc4: float | None

    @property
    def nc2(self) -> float:
        """Return the deviation from a simplex, of angles and lengths together."""
        return self.nc2_angles + self.nc2_norms

    def summary(self) -> dict[str, float]:
        """Return the numbers that fit one line of a report."""
        names = ("nc1", "nc1_ratio", "nc2_angles", "nc2_norms", "nc3", "nc4")
        return {n: nan if getattr(self, n) is None else getattr(self, n) for n in names}


@method(source="Tirer et al. 2023, arXiv:2210.16658, ICML", interface=Statistic)
def neural_collapse(
    features_ND: Tensor,
    labels_N: Tensor,
    weight_KD: Tensor | None = None,
    bias_K: Tensor | None = None,
) -> NeuralCollapse:
    """Measure the collapse of one layer's features.

    As in the paper, whose classes are of equal size. Here the global mean and Sigma_B weigh
    classes alike and Sigma_W weighs rows alike. With more than D + 1 classes there is no simplex,
    so NC2 cannot reach 0. If all class means are equal, NC1 is inf (NaN if all rows are equal)
    and NC2 and NC3 are NaN.

    Args:
        features_ND: Activations, one row for each sample; computed in float64.
        labels_N: Integer classes, at least 2 and each with at least 2 rows.
        weight_KD: The last layer's weights, if the features are its input; row k is class k.
        bias_K: Its bias.

    Raises:
        InputError: Labels, weights or bias do not fit, or numbers are not finite.

    Example:
        >>> features_ND = torch.tensor([[5.0], [3.0], [-3.0], [-5.0]])
        >>> found = neural_collapse(features_ND, torch.tensor([0, 0, 1, 1]), torch.eye(2)[:, :1])
        >>> found.nc1_ratio, found.nc2, found.nc4  # within 1, between 16; the weights are right
        (0.0625, 0.0, 1.0)

        Layer by layer, and over training:

        >>> from actkit.opening.checkpoints import Checkpoints
        >>> def train():
        ...     net = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.ReLU())
        ...     for step in range(2):
        ...         yield step, net
        >>> def layers(model):
        ...     rec = model.run(features_ND, record="*:out")
        ...     return {s: neural_collapse(rec[s], torch.tensor([0, 0, 1, 1])).nc1 for s in rec}
        >>> {step: list(nc1) for step, nc1 in Checkpoints(train).over(layers).items()}
        {0: ['0:out', '1:out'], 1: ['0:out', '1:out']}
    """
    features_ND = checked(features_ND)
    classes_K, index_N = class_index(labels_N, len(features_ND))
    classes = Classes.of(features_ND, index_N)
    means_KD, num_classes = classes.means_KD, len(classes_K)
    length_K = means_KD.norm(dim=1)
    unit_KD = means_KD / length_K[:, None]
    simplex_KK = (num_classes * torch.eye(num_classes).to(unit_KD) - 1) / (num_classes - 1)
    angles = (unit_KD @ unit_KD.T - simplex_KK).norm() / simplex_KK.norm()
    nc3 = nc4 = None
    if weight_KD is None and bias_K is not None:
        raise InputError(f"a bias needs its weights, got {tuple(bias_K.shape)} without")
    if weight_KD is not None:
        weight_KD, bias_K = _classifier(weight_KD, bias_K, classes_K, features_ND.shape[1])
        nc3 = float((weight_KD / weight_KD.norm() - means_KD / means_KD.norm()).norm())
        said_N = (features_ND @ weight_KD.T + bias_K).argmax(1)
        near_N = torch.cdist(features_ND - classes.mean_D, means_KD).argmin(1)
        nc4 = float((said_N == near_N).double().mean())
    return NeuralCollapse(
        nc1=classes.variability(),
        nc1_ratio=classes.ratio(),
        nc2_angles=float(angles),
        nc2_norms=float(length_K.std(correction=0) / length_K.mean()),
        nc3=nc3,
        nc4=nc4,
    )


def _classifier(
    weight_KD: Tensor, bias_K: Tensor | None, classes_K: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Return weights and bias (0 if none) in float64 on the CPU."""
    num_classes = len(classes_K)
    bias_K = torch.zeros(num_classes) if bias_K is None else bias_K
    if weight_KD.shape != (num_classes, width) or bias_K.shape != (num_classes,):
        raise InputError(
            f"weights must be {(num_classes, width)} and the bias {(num_classes,)}, got "
            f"{tuple(weight_KD.shape)} and {tuple(bias_K.shape)}"
        )
    if lost := sum(int((~x.isfinite()).sum()) for x in (weight_KD, bias_K)):
        raise InputError(f"weights and bias must be finite, got {lost} numbers that are not")
    if classes_K.tolist() != list(range(num_classes)):
        raise InputError(
            f"with a classifier the labels must be all of 0 to {num_classes - 1}, "
            f"got {classes_K.tolist()}"
        )
    return weight_KD.detach().cpu().double(), bias_K.detach().cpu().double()
