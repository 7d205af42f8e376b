"""Narrow a network's layers to the directions that stand out from noise, and distil.

Shapes: N rows, X inputs, D outputs of a layer, K kept directions, C classes.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.marchenko_pastur import MarchenkoPastur, rounding
from actkit.core.progress import track


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
    """

    weight: float = 0.5
    epochs: int = 5
    rate: float = 2e-3
    batch_size: int = 64
    tolerance: float = 0.015
    seed: int = 0


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


@method(source="Ettori 2026, arXiv:2602.22345, RMT-KD")
def rmt_kd(
    network: nn.Sequential,
    inputs_NX: Tensor,
    labels_N: Tensor,
    *,
    basis: Callable[[Tensor], Tensor] = outlier_basis,
    distillation: Distillation | None = None,
) -> Narrowed:
    """Project every linear layer but the last onto the outliers of its outputs, one by one.

    With the (D, K) eigenvectors P above the Marchenko-Pastur limit, W x + b becomes
    P (P^T W x + P^T (b - m)) + m, m being the mean output: the layer itself where the rest is
    noise, in K (X + D) weights instead of X D. Then the network is trained with cross-entropy
    and KL to the network before. A layer that would not get smaller is left as it is; the first
    one that costs more accuracy than allowed is restored and ends the run.

    Against the paper: it narrows the stream between layers too, which needs layers in between
    that a rotation does not change; here activation functions stay where they are, in full
    width. The limit is a little above the edge, see `MarchenkoPastur.limit`.

    Args:
        network: Linear layers and what lies between them; it is not changed.
        inputs_NX: (N, X) data to calibrate and train on.
        labels_N: (N,) classes.
        basis: Gives the directions to keep from a layer's (N, D) outputs.
        distillation: How to train; None for the defaults.

    Raises:
        InputError: There are fewer than two linear layers, or rows and labels do not fit.
    """
    how = distillation or Distillation()
    linear = [i for i, layer in enumerate(network) if isinstance(layer, nn.Linear)]
    if len(linear) < 2 or len(labels_N) != len(inputs_NX) or len(inputs_NX) < 2:
        raise InputError(
            "need two linear layers and one label for each of at least 2 rows, got "
            f"{len(linear)} layers, {len(inputs_NX)} rows and {len(labels_N)} labels"
        )
    student, ranks, shift = copy.deepcopy(network).eval(), {}, 0
    before = _accuracy(student, inputs_NX, labels_N)
    for place in track(linear[:-1], "narrowing"):
        narrow, rank = _projected(student, place + shift, inputs_NX, basis)
        if _size(narrow) >= _size(student) or not rank:
            continue
        _distil(narrow, student, inputs_NX, labels_N, how)
        if _accuracy(narrow, inputs_NX, labels_N) < before - how.tolerance:
            break
        student, ranks[place], shift = narrow, rank, shift + 1
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
        down, up = (
            skip_init(nn.Linear, *sizes, device=layer.weight.device, dtype=layer.weight.dtype)
            for sizes in ((layer.in_features, rank), (rank, layer.out_features))
        )
        down.weight.copy_(basis_DK.T @ layer.weight)
        down.bias.copy_(basis_DK.T @ (layer(torch.zeros_like(layer.weight[0])) - mean_D))
        up.weight.copy_(basis_DK)
        up.bias.copy_(mean_D)
    parts = copy.deepcopy(list(network))
    return nn.Sequential(*parts[:place], down, up, *parts[place + 1 :]), rank


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
