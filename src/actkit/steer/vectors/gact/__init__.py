"""Cluster what the examples differ in, and let a probe choose what is added.

Shapes: N pairs, B batch, T tokens, K clusters, L layers, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.controller import StrengthOperation
from actkit.core.edits.edit import Edit
from actkit.core.edits.where import Where
from actkit.core.errors import InputError, NotFittedError
from actkit.model import Model
from actkit.steer._base import ContrastSteerer, Strength
from actkit.steer._examples import Examples
from actkit.steer._states import by_layer, chosen_layers, states
from actkit.steer.vectors.gact._cluster_probe import (
    clustered,
    features,
    fitted_probe,
    held_out_accuracy,
    refined,
)


@method(source="Sharma and Raman 2025, arXiv:2506.18887")
@dataclass
class GACT(ContrastSteerer):
    """Gradient-refined adaptive activation steering.

    At each layer the differences between the two sides of the pairs, at length one, are
    clustered by k-means; a softmax probe learns to tell from a state which cluster its pair was
    in. From the prompt's end on, h becomes h + strength * p_j * c_j, with j the cluster that the
    probe finds most likely, p_j its probability and c_j the cluster's centroid. `refine` goes on
    training the probes online, one gradient step for each further pair.

    Left open by the paper and chosen here: centroids have the mean length of their layer's
    differences; the probe reads states from their mean, at length one; active layers share the
    strength equally.

    Args:
        num_clusters: K, steering vectors of each layer.
        layers: Blocks after which they are added; those whose probe tells at least `threshold`
            of held-out pairs if None, the one at 60 % of the depth if none does.
        threshold: Share in [0, 1].
        rate: Of the gradient steps of `refine`; the n-th step has rate / sqrt(n).
        seed: Of k-means.

    Attributes:
        vectors_: (K, D) of each layer.
        accuracy_: Of each layer's probe, on a quarter of the pairs that was held out; after
            `refine`, on its pairs, each before it was learnt from.

    Example:
        >>> axes = torch.eye(2)
        >>> choose = Choose(vectors=3 * axes, weights=50 * axes, centre=torch.zeros(2))
        >>> choose(torch.tensor([[[4.0, 1.0], [0.0, 2.0]]]))
        tensor([[[7., 1.],
                 [0., 5.]]])
        >>> import actkit as ak
        >>> sides = zip("love joy good kind".split(), "hate grief bad cruel".split(), strict=True)
        >>> gact = GACT(num_clusters=2, layers=18).fit(ak.open("smollm2"), list(sides))
        >>> gact.vectors_[18].shape
        torch.Size([2, 576])
    """

    num_clusters: int = 3
    layers: int | Sequence[int] | None = None
    threshold: float = 0.9
    rate: float = 1.0
    seed: int = 0
    vectors_: dict[int, Tensor] = field(init=False, repr=False, default_factory=dict)
    accuracy_: dict[int, float] = field(init=False, repr=False, default_factory=dict)
    _weights: dict[int, Tensor] = field(init=False, repr=False, default_factory=dict)
    _centres: dict[int, Tensor] = field(init=False, repr=False, default_factory=dict)
    _steps: int = field(init=False, repr=False, default=0)

    def _contrast(self, model: Model, examples: Examples) -> None:
        plus, minus = _sides(model, examples)
        num = len(examples.positive)
        if not 1 <= self.num_clusters <= num or num < 2:
            raise InputError(
                f"need at least 2 pairs and num_clusters of them, got {num} pairs for "
                f"{self.num_clusters} clusters"
            )
        self.vectors_, self._centres, self._steps = {}, {}, 0
        rows, labels = [], []
        for n in plus:
            difference_ND = plus[n] - minus[n]
            length_N = difference_ND.norm(dim=-1)
            if (same := int((length_N == 0).sum())) > 0:
                raise InputError(f"the sides of a pair must differ, {same} of {num} do not")
            centroids_KD, label_N = clustered(difference_ND, self.num_clusters, self.seed)
            self.vectors_[n] = centroids_KD * length_N.mean()
            both_MD = torch.stack([plus[n], minus[n]], 1).flatten(0, 1)
            self._centres[n] = both_MD.mean(0)
            rows.append(features(both_MD, self._centres[n]))
            labels.append(label_N.repeat_interleave(2))
        data = (torch.stack(rows), torch.stack(labels), self.num_clusters)
        self.accuracy_ = dict(zip(self.vectors_, held_out_accuracy(*data), strict=True))
        self._weights = dict(zip(self.vectors_, fitted_probe(*data), strict=True))

    def refine(self, model: Model, data: Any) -> Self:
        """Train the probes further, one pair after another.

        Each pair belongs to the cluster whose centroid its difference is most alike; the probes
        take one gradient step on the cross-entropy of telling so from its negative side.

        Args:
            model: The network.
            data: Pairs, as `fit` takes them.

        Raises:
            NotFittedError: `fit` was not called.
            InputError: As in `fit`.
        """
        if self.about_ is None:
            raise NotFittedError("GACT must be fitted before it is refined")
        examples = Examples.of(data)
        plus, minus = _sides(model, examples)
        self._weights, self.accuracy_ = dict(self._weights), {}
        for n, vectors_KD in self.vectors_.items():
            labels_N = ((plus[n] - minus[n]) @ vectors_KD.mT).argmax(-1)
            rows_ND = features(minus[n], self._centres[n])
            right = 0
            for step, (row_D, label) in enumerate(zip(rows_ND, labels_N.tolist(), strict=True)):
                right += int((self._weights[n] @ row_D).argmax()) == label
                rate = self.rate / (self._steps + step + 1) ** 0.5
                self._weights[n] = refined(self._weights[n], row_D, label, rate)
            self.accuracy_[n] = right / len(rows_ND)
        self._steps += len(examples.positive)
        learnt_from = {**self.about_["data"], "refined": self._steps}
        self.about_ = {**self.about_, "data": learnt_from}
        return self

    @property
    def active(self) -> list[int]:
        """Return the layers that it steers."""
        good = [n for n, share in self.accuracy_.items() if share >= self.threshold]
        return chosen_layers(good or None if self.layers is None else self.layers, self.vectors_)

    def _act(self, strength: Strength) -> list[Edit]:
        edits = []
        for n in self.active:
            vectors_KD = self.vectors_[n] / len(self.active)
            choose = Choose(vectors_KD, self._weights[n], self._centres[n], strength=strength)
            edits.append(Edit(f"resid_post.{n}", choose, Where(tokens="last")))
        return edits


@dataclass(frozen=True, eq=False)
class Choose(StrengthOperation):
    """Add the vector of the most likely cluster, times its probability and the strength.

    Args:
        vectors: (K, D).
        weights: (K, D) of the probe.
        centre: (D,) that the probe reads from.
    """

    identifier: ClassVar[str] = "gact.choose"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer.gact:Choose",)
    vectors: Tensor
    weights: Tensor
    centre: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return (B, T, D) x + s p_j c_j."""
        p_BTK = (features(x, self.centre) @ self.weights.mT).softmax(-1)
        gate_BT1, chosen_BT1 = p_BTK.max(-1, keepdim=True)
        return x + self.dose(x) * gate_BT1 * self.vectors[chosen_BT1[..., 0]]


def _sides(model: Model, examples: Examples) -> list[dict[int, Tensor]]:
    """Return the (N, D) last states of each side, by layer."""
    examples.check_paired()
    sides = (examples.positive, examples.negative)
    return [by_layer(states(model, side, "resid_post.*")) for side in sides]
