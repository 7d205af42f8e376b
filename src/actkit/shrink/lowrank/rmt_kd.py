"""Narrow a network's layers to the directions that stand out from noise, and distil.

Shapes: N rows, X inputs, D outputs of a layer, K kept directions, C classes.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.maths.marchenko_pastur import MarchenkoPastur, rounding
from actkit.shrink._base import Narrower


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """How a narrowed network is trained towards what it was before, by Adam.

    Args:
        weight: Share of the cross-entropy with the labels in the loss, in [0, 1]; the rest is
            KL(before || after) of the class probabilities.
        epochs: Passes over the data after each layer.
        rate: Adam's learning rate.
        batch_size: Rows in a step.
        tolerance: By how much the accuracy on the data may fall, in [0, 1].
        seed: Of the order of the rows.

    Raises:
        InputError: A setting is out of range.
    """

    weight: float = 0.5
    epochs: int = 5
    rate: float = 2e-3
    batch_size: int = 64
    tolerance: float = 0.015
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        shares = 0 <= self.weight <= 1 and 0 <= self.tolerance <= 1
        if not shares or self.epochs < 0 or self.rate <= 0 or self.batch_size < 1:
            raise InputError(
                "weight and tolerance must be in [0, 1], epochs at least 0, rate above 0 and "
                f"batch_size at least 1, got {self}"
            )


@dataclass(frozen=True, slots=True)
class Narrowed:
    """A narrowed copy of a network.

    Attributes:
        network: The copy; each narrowed layer is two, X to K and K to D.
        ranks: K of each narrowed layer, by its place in the given network.
        accuracy: On the given data, share in [0, 1].
        accuracy_before: The same of the given network.
        share_cut: Share of all parameters that is gone.
    """

    network: nn.Sequential
    ranks: dict[int, int]
    accuracy: float
    accuracy_before: float
    share_cut: float


def outlier_basis(acts_ND: Tensor) -> Tensor:
    """Return the (D, K) eigenvectors of the covariance above the noise, float64, largest first."""
    off_ND = acts_ND.detach().cpu().double()
    off_ND = off_ND - off_ND.mean(0)
    values_D, vectors_DD = torch.linalg.eigh(off_ND.T @ off_ND / len(acts_ND))
    values_D = values_D.where(values_D > rounding(acts_ND), 0)
    law = MarchenkoPastur.fit(values_D, len(acts_ND) - 1)
    kept_DK: Tensor = vectors_DD[:, values_D > law.limit(len(acts_ND) - 1)].flip(1)
    return kept_DK


@method(source="Ettori 2026, arXiv:2602.22345, RMT-KD", interface=Narrower)
def rmt_kd(
    network: nn.Sequential,
    inputs_NX: Tensor,
    labels_N: Tensor,
    *,
    group: int = 1,
    basis: Callable[[Tensor], Tensor] = outlier_basis,
    distillation: Distillation | None = None,
) -> Narrowed:
    """Project every linear layer but the last onto the outliers of its outputs, by groups.

    With the (D, K) eigenvectors P above the Marchenko-Pastur limit, W x + b becomes
    P (P^T W x + P^T (b - m)) + m, m being the mean output: the layer itself where the rest is
    noise, in K (X + D) weights instead of X D. After each group the network is trained with
    cross-entropy and KL to the network before. A layer that would not get smaller is left as it
    is; the first group that costs more accuracy than allowed is restored and ends the run.

    Against the paper: it narrows the stream between layers too, which needs layers in between
    that a rotation does not change; here activation functions stay where they are, in full
    width. The limit is a little above the edge, see `MarchenkoPastur.limit`.

    Args:
        network: Linear layers and what lies between them; it is not changed.
        inputs_NX: (N, X) data to calibrate and train on.
        labels_N: (N,) classes.
        group: Layers to project before training (>= 1).
        basis: Gives the directions to keep from a layer's (N, D) outputs.
        distillation: How to train; None for the defaults.

    Raises:
        InputError: There are fewer than two linear layers, rows and labels do not fit, or
            `group` is below 1.

    Example:
        >>> network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> line_NX = torch.linspace(-1, 1, 50)[:, None].expand(-1, 8)
        >>> how = Distillation(tolerance=1)
        >>> rmt_kd(network, line_NX, (line_NX[:, 0] > 0).long(), distillation=how).ranks
        {0: 1}
    """
    how = distillation or Distillation()
    linear = [i for i, layer in enumerate(network) if isinstance(layer, nn.Linear)]
    num_rows, num_labels = len(inputs_NX), len(labels_N)
    if min(len(linear), num_rows) < 2 or num_labels != num_rows or group < 1:
        raise InputError(
            "need two linear layers, one label for each of at least 2 rows and group >= 1, got "
            f"{len(linear)} layers, {num_rows} rows, {num_labels} labels and {group=}"
        )
    student = copy.deepcopy(network).eval()
    ranks: dict[int, int] = {}
    before = _accuracy(student, inputs_NX, labels_N)
    groups = [linear[:-1][i : i + group] for i in range(0, len(linear) - 1, group)]
    for places in track(groups, "narrowing"):
        narrow = student
        more: dict[int, int] = {}
        for place in places:
            wide, moved = narrow, place + len(ranks) + len(more)
            narrow, rank = _projected(wide, moved, inputs_NX, basis)
            if rank and _size(narrow) < _size(wide):
                more[place] = rank
            else:
                narrow = wide
        if not more:
            continue
        _distil(narrow, student, inputs_NX, labels_N, how)
        if _accuracy(narrow, inputs_NX, labels_N) < before - how.tolerance:
            break
        student, ranks = narrow, ranks | more
    share_cut = 1 - _size(student) / _size(network)
    after = _accuracy(student, inputs_NX, labels_N)
    return Narrowed(student.train(network.training), ranks, after, before, share_cut)


def _projected(
    network: nn.Sequential, place: int, inputs_NX: Tensor, basis: Callable[[Tensor], Tensor]
) -> tuple[nn.Sequential, int]:
    layer: Any = network[place]
    with torch.no_grad():
        acts_ND = network[: place + 1](inputs_NX)
        mean_D, basis_DK = acts_ND.mean(0), basis(acts_ND).to(layer.weight)
        rank = basis_DK.shape[1]
        down, up = _linear(layer.in_features, rank, layer), _linear(rank, layer.out_features, layer)
        down.weight.copy_(basis_DK.T @ layer.weight)
        down.bias.copy_(basis_DK.T @ (layer(torch.zeros_like(layer.weight[0])) - mean_D))
        up.weight.copy_(basis_DK)
        up.bias.copy_(mean_D)
    parts = copy.deepcopy(list(network))
    return nn.Sequential(*parts[:place], down, up, *parts[place + 1 :]), rank


def _linear(num_inputs: int, num_outputs: int, like: nn.Linear) -> nn.Linear:
    """Return a layer without values: its own would be drawn from the global random state."""
    weight = like.weight
    empty = nn.Linear(num_inputs, num_outputs, device="meta", dtype=weight.dtype)
    return empty.to_empty(device=weight.device)


def _distil(
    student: nn.Sequential,
    teacher: nn.Sequential,
    inputs_NX: Tensor,
    labels_N: Tensor,
    how: Distillation,
) -> None:
    with torch.no_grad():
        target_NC = teacher(inputs_NX).log_softmax(-1)
    gen = torch.Generator().manual_seed(how.seed)
    optimizer = torch.optim.Adam(student.parameters(), how.rate)
    student.train()
    for _ in range(how.epochs):
        order_N = torch.randperm(len(inputs_NX), generator=gen)
        for index in torch.split(order_N, how.batch_size):
            logits = student(inputs_NX[index])
            task = nn.functional.cross_entropy(logits, labels_N[index])
            old, new = target_NC[index], logits.log_softmax(-1)
            kl = nn.functional.kl_div(new, old, log_target=True, reduction="batchmean")
            loss = how.weight * task + (1 - how.weight) * kl
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    student.eval()


def _accuracy(network: nn.Sequential, inputs_NX: Tensor, labels_N: Tensor) -> float:
    with torch.no_grad():
        return float((network(inputs_NX).argmax(-1) == labels_N).double().mean())


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
