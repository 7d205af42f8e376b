"""Binary activation patterns of a network, packed to bits, and what can be done with them.

Shapes: N rows, U units, P bytes of packed bits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actkit.core.errors import InputError
from actkit.core.sweep.stream import batches
from actkit.model import Model

RELU_LIKE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.GELU, nn.SiLU)
"""Modules whose units are switched on by a positive input."""


@dataclass(frozen=True, slots=True)
class NeuralCode:
    """One bit per unit and row: whether the unit is on.

    Attributes:
        packed_NP: (N, P) uint8, eight units a byte.
        num_units: How many units there are.
    """

    packed_NP: Tensor
    num_units: int

    @classmethod
    def of(cls, acts_NU: Tensor) -> "NeuralCode":
        """Take (N, U) values before or after a ReLU: a unit is on where its value is positive."""
        if acts_NU.dim() != 2:
            raise InputError(f"a code needs (N, U) values, got shape {tuple(acts_NU.shape)}")
        if bad := int(acts_NU.isnan().any(1).sum()):
            raise InputError(f"a code needs values that are numbers, {bad} rows hold NaN")
        packed = np.packbits((acts_NU > 0).cpu().numpy(), axis=1)
        return cls(torch.from_numpy(packed), acts_NU.shape[1])

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.packed_NP)

    def __getitem__(self, index: Any) -> "NeuralCode":
        """Select rows."""
        return NeuralCode(self.packed_NP[index], self.num_units)

    def bits(self) -> Tensor:
        """Return the (N, U) bits, bool."""
        return torch.from_numpy(
            np.unpackbits(self.packed_NP.numpy(), axis=1, count=self.num_units).astype(bool)
        )

    def redundancy(self) -> float:
        """Return (N - number of different codes) / N: 0 if each row has a region of its own."""
        if not len(self):
            raise InputError("redundancy needs at least 1 row, got none")
        return (len(self) - self.num_different()) / len(self)

    def num_different(self) -> int:
        """Return how many codes there are, copies counted once."""
        return len(np.unique(self.packed_NP.numpy(), axis=0))

    def flips(self, other: "NeuralCode") -> Tensor:
        """Return the (N,) number of units that differ: the Hamming distance, row by row."""
        if (len(self), self.num_units) != (len(other), other.num_units):
            raise InputError(
                f"codes must have the same rows and units, got {len(self)} x {self.num_units} "
                f"and {len(other)} x {other.num_units}"
            )
        changed = np.unpackbits((self.packed_NP ^ other.packed_NP).numpy(), axis=1)
        return torch.from_numpy(changed.sum(1, dtype=np.int64))

    def cluster_accuracy(self, labels_N: Any, seed: int = 0) -> float:
        """Return how well K-means, one cluster per class, finds the classes.

        Clusters are given to classes so that most rows are right (Hungarian algorithm).
        """
        from scipy.optimize import linear_sum_assignment
        from sklearn.cluster import KMeans

        classes, label_N = np.unique(self._labels(labels_N), return_inverse=True)
        if self.num_different() < len(classes):
            raise InputError(f"{len(classes)} clusters need as many different codes")
        means = KMeans(len(classes), n_init=10, random_state=seed)
        counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
        np.add.at(counts, (means.fit_predict(self.bits().float().numpy()), label_N), 1)
        matched = linear_sum_assignment(counts, maximize=True)
        return float(counts[matched].sum() / len(self))

    def knn_accuracy(
        self, labels_N: Any, test: "NeuralCode", test_labels_N: Any, num_neighbours: int = 9
    ) -> float:
        """Return the test accuracy of a vote among the nearest codes by Hamming distance."""
        from sklearn.neighbors import KNeighborsClassifier

        if not 1 <= num_neighbours <= len(self):
            raise InputError(f"neighbours must be 1 to {len(self)} rows, got {num_neighbours}")
        vote = KNeighborsClassifier(num_neighbours, metric="hamming", algorithm="brute")
        return self._tested(vote, labels_N, test, test_labels_N)

    def logreg_accuracy(self, labels_N: Any, test: "NeuralCode", test_labels_N: Any) -> float:
        """Return the test accuracy of one-versus-one logistic regression on the bits."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsOneClassifier

        model = OneVsOneClassifier(LogisticRegression(max_iter=1000))
        return self._tested(model, labels_N, test, test_labels_N)

    def _tested(self, model: Any, labels_N: Any, test: "NeuralCode", test_labels_N: Any) -> float:
        if self.num_units != test.num_units:
            raise InputError(f"codes must have {self.num_units} units, got {test.num_units}")
        model.fit(self.bits().numpy(), self._labels(labels_N))
        return float((model.predict(test.bits().numpy()) == test._labels(test_labels_N)).mean())

    def _labels(self, labels_N: Any) -> Any:
        label_N = np.asarray(labels_N)
        if label_N.shape != (len(self),):
            raise InputError(f"need one label for {len(self)} rows, got shape {label_N.shape}")
        return label_N


def read_code(model: Model, data: Any, sites: str | Sequence[str] | None, size: int) -> NeuralCode:
    """Return the code of every sample, or of every token of a text, over all sites together."""
    found = _relu_inputs(model) if sites is None else sites
    parts = []
    for batch in _batched(data, size):
        recording = model.run(batch, record=found)
        units = []
        for site in recording:
            text = bool((recording.rows_of(site).token >= 0).any())
            units.append(recording.flat(site)[0] if text else recording[site])
        parts.append(NeuralCode.of(torch.cat([u.flatten(1) for u in units], 1)))
    if not parts:
        raise InputError("data must hold at least one sample, got none")
    return NeuralCode(torch.cat([part.packed_NP for part in parts]), parts[0].num_units)


def _batched(data: Any, size: int) -> Iterator[Any]:
    """Yield batches; one tensor is taken for the rows of all."""
    yield from torch.split(data, size) if isinstance(data, Tensor) else batches(data, size)


def _relu_inputs(model: Model) -> list[str]:
    modules = model.module.named_modules()
    paths = [f"{path}:in" for path, module in modules if isinstance(module, RELU_LIKE)]
    if not paths:
        raise InputError(
            f"name the sites: {model!r} has no module among "
            f"{', '.join(kind.__name__ for kind in RELU_LIKE)}"
        )
    return paths
