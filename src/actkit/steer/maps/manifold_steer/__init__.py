"""Steer along the curve on which a concept's values lie, not straight through.

Shapes: N inputs, C values of the concept, K components, D width, P pieces of a curve,
S places on a path, A answers (the last stands for all others).
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.digest import digest
from actkit.core.edits.edit import Edit, add
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.model import Model
from actkit.steer._base import Steerer, Strength
from actkit.steer.maps.manifold_steer._behaviour import LAST, Trace, followed, hellinger, observed
from actkit.steer.maps.manifold_steer._manifold import Along, ConceptCurve, components, spaced


@method(source="Wurgaft et al. 2026, arXiv:2605.05115")
@dataclass
class ManifoldSteer(Steerer):
    """Move the last token's state along the curve through the concept's mean states.

    `data` maps each value of the concept, in order, to inputs that show it. With the centroids'
    principal components U and the spline g through their coordinates, a path from value i to j
    is h + U (g(s) - g(s_i)); the behaviour manifold is such a spline through the square roots of
    the mean output distributions.

    Against the paper: values in a row or in a circle, no graphs; the optimised paths of `invert`
    stay in the components' span.

    Args:
        site: Where the states are, for example `resid_post.10`.
        start: Value at which paths begin; the first if None.
        stop: Value at which they end; the last if None. On a circle they go the shorter way.
        cyclic: Whether the last value is the first one's neighbour.
        num_components: K; all directions of the centroids if None, at most 10.
        linear: Go straight from centroid to centroid, the baseline.
        answers: (C,) outputs that name the values; the first C if None.

    Attributes:
        values_: The values in order.
        curve_: The activation manifold, in coordinates of the components.
        basis_: (K, D) components U^T.
        behaviour_: The behaviour manifold, of square roots of probabilities.

    Raises:
        InputError: There are too few values, a value has no inputs, or a setting does not fit.

    Example:
        >>> import actkit as ak
        >>> net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(2, 3))
        >>> data = {k: torch.tensor([[k, 0.0]]) for k in (0.0, 1.0, 2.0)}
        >>> steer = ManifoldSteer("0:out").fit(ak.open(net), data).between(0.0, 2.0)
        >>> ak.open(net).run(data[0.0], ["0:out"], steer.edits(0.75))["0:out"]
        tensor([[1.5000, 0.0000]])
    """

    grid: ClassVar[tuple[float, ...]] = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
    site: str
    start: Any = None
    stop: Any = None
    cyclic: bool = False
    num_components: int | None = None
    linear: bool = False
    answers: Sequence[int] | None = None
    values_: tuple[Any, ...] = field(init=False, repr=False, default=())
    curve_: ConceptCurve = field(init=False, repr=False)
    basis_: Tensor = field(init=False, repr=False)
    behaviour_: ConceptCurve = field(init=False, repr=False)

    def between(self, start: Any, stop: Any, linear: bool = False) -> Self:
        """Return the same, fitted as it is, for paths from one value to another."""
        moved = copy(self)
        moved.start, moved.stop, moved.linear = start, stop, linear
        if self.about_ is not None:
            moved._ends()
            chosen = {"start": start, "stop": stop, "linear": linear}
            moved.about_ = {**self.about_, "settings": {**self.about_["settings"], **chosen}}
        return moved

    def trace(self, model: Model, inputs: Sequence[Any], strengths: Sequence[float]) -> Trace:
        """Return what the network says to inputs that show `start`, at each strength."""
        probs_SA = torch.stack(
            [
                observed(model, inputs, self.site, self._answers(), self.edits(s))[1].mean(0)
                for s in track(strengths, "tracing a path")
            ]
        )
        return Trace(self.values_, probs_SA, hellinger(self.behaviour_, probs_SA))

    def invert(
        self, model: Model, inputs: Sequence[Any], strengths: Sequence[float], num_steps: int = 150
    ) -> Tensor:
        """Find the shifts of the state that make the network follow the behaviour manifold.

        Args:
            model: The network.
            inputs: Of the value at which paths begin.
            strengths: S shares of the way.
            num_steps: Of Adam.

        Returns:
            (S, K) shifts, in coordinates of the components.
        """
        target_SA = self.behaviour_(spaced(*self._ends(), strengths)).square()
        radius = self.curve_(torch.arange(len(self.values_)).double()).norm(dim=-1).mean()
        scaled_KD = radius.float() * self.basis_
        z_SK = followed(model, inputs, self.site, self._answers(), target_SA, scaled_KD, num_steps)
        shifts_SK: Tensor = radius.float() * z_SK
        return shifts_SK

    def _learn(self, model: Model, data: Any) -> dict[str, Any]:
        if not isinstance(data, Mapping) or len(data) < 2 + self.cyclic:
            raise InputError(
                f"data must map at least {2 + self.cyclic} values to inputs, got "
                f"{len(data) if isinstance(data, Mapping) else type(data).__name__}"
            )
        if empty := [value for value, inputs in data.items() if not len(inputs)]:
            raise InputError(f"each value needs at least one input, got none of {empty}")
        if self.answers is not None and len(self.answers) != len(data):
            raise InputError(f"need {len(data)} answers, one a value, got {len(self.answers)}")
        self.values_ = tuple(data)
        self._ends()
        seen = [
            observed(model, inputs, self.site, self._answers())
            for inputs in track(data.values(), "reading values")
        ]
        centroids_CD = torch.stack([states_ND.double().mean(0) for states_ND, _ in seen])
        off_CD = centroids_CD - centroids_CD.mean(0)
        self.basis_ = components(off_CD, self.num_components)
        self.curve_ = ConceptCurve.through(off_CD @ self.basis_.double().T, self.cyclic)
        said_CA = torch.stack([probs_NA.mean(0) for _, probs_NA in seen])
        self.behaviour_ = ConceptCurve.through(said_CA.sqrt(), self.cyclic)
        plain = {str(value): list(inputs) for value, inputs in data.items()}
        return {**{value: len(own) for value, own in plain.items()}, "sha256": digest(plain)}

    def _answers(self) -> list[int]:
        """Return the outputs that name the values."""
        return list(range(len(self.values_)) if self.answers is None else self.answers)

    def _ends(self) -> tuple[int, int]:
        """Return the index of the first value, and how far the way goes."""
        ends = (
            self.values_[0] if self.start is None else self.start,
            self.values_[-1] if self.stop is None else self.stop,
        )
        if unknown := [value for value in ends if value not in self.values_]:
            raise InputError(f"paths must join values of the data, {self.values_}, got {unknown}")
        first, last = map(self.values_.index, ends)
        num, half = len(self.values_), (len(self.values_) - 1) // 2
        return first, (last - first + half) % num - half if self.cyclic else last - first

    def _act(self, strength: Strength) -> list[Edit]:
        first, way = self._ends()
        basis_KD = self.basis_.double()
        if self.linear:
            here, there = self.curve_(torch.tensor([first, first + way], dtype=torch.float64))
            return [add(self.site, ((there - here) @ basis_KD).float(), strength, LAST)]
        pieces_P4D = (self.curve_.pieces_P4D @ basis_KD).float()
        along = Along(pieces_P4D, self.cyclic, float(first), float(way), strength=strength)
        return [Edit(self.site, along, LAST)]
