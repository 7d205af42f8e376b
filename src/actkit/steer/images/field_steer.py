"""Add the mean difference of two physical regimes to the fields inside a network.

Shapes: B batch, C channels, X points of the grid, all its axes in one.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.controller import StrengthOperation
from actkit.core.edits.edit import Edit
from actkit.core.errors import EditError, InputError
from actkit.core.progress import track
from actkit.model import Model
from actkit.steer._base import ContrastSteerer, Strength
from actkit.steer._examples import Examples

Spatial = Literal["drop", "pad", "interpolate", "none"]
_MODES = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True, eq=False)
class Injected(StrengthOperation):
    """Add a field that is as long as the state, then give the state its length back.

    Attributes:
        delta: (X, C), or (1, C) for the same at every point.
        renormalise: Whether the state keeps its length.
    """

    identifier: ClassVar[str] = "field_steer.inject"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer.field_steer:Injected",)
    delta: Tensor
    renormalise: bool = True

    def __call__(self, x: Tensor) -> Tensor:
        """Return h + s |h| d / |d|, as long as h; lengths are of a sample's whole field."""
        if len(self.delta) not in (1, x.shape[1]):
            raise EditError(
                f"a field must have the grid of its site, which has {x.shape[1]} points, "
                f"got {len(self.delta)}: choose the grid with `on`"
            )
        delta = self.delta.expand(x.shape[1:])
        new = x + self.dose(x) * _length(x) * (delta / _divisor(delta[None]))
        return new * (_length(x) / _divisor(new)) if self.renormalise else new


def _length(x: Tensor) -> Tensor:
    """Return the length of each sample's field, (B, 1, 1)."""
    length: Tensor = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    return length


def _divisor(x: Tensor) -> Tensor:
    """Return the length, but never 0."""
    return _length(x).clamp_min(torch.finfo(x.dtype).tiny)


@method(source="Fear et al. 2025, arXiv:2511.20798, with DJ-Fear/walrus_steering")
@dataclass
class FieldSteer(ContrastSteerer):
    """The mean field in one regime less that in another, added at every step of a rollout.

    Each input of the two sides is a batch, such as the states along one simulation. A strength is
    the share of the state's length that is added; the paper uses 0.1 to 0.7 of either sign.

    Against the paper: "interpolate" also shrinks a larger field, where the authors' code crops
    it, and lengths are restored as the text says, where their code leaves it out.

    Args:
        site: A module's output or input of shape (B, C, Y, X) or (B, C, Z, Y, X).
        spatial: What is made of the grid: "drop", one vector for all points, the mean over them;
            "pad", zeros at the far ends of an axis that is too short and the middle of one that
            is too long; "interpolate", linear; "none", only the grid of the examples will do.
        renormalise: Whether the state keeps its length.
        size: Grid to act on; that of the examples if None. "drop" acts on any.

    Attributes:
        delta_: (C, ...) of unit length, on the examples' grid.

    Raises:
        InputError: The site holds no fields, their grids differ, or the regimes do not.

    Example:
        >>> import actkit as ak
        >>> net = torch.nn.Sequential(torch.nn.Identity())
        >>> ones = torch.ones(1, 1, 2, 2)
        >>> sides = {"positive": [3 * ones], "negative": [ones]}
        >>> FieldSteer("0:out").fit(ak.open(net), sides).delta_
        tensor([[[0.5000, 0.5000],
                 [0.5000, 0.5000]]])
    """

    grid: ClassVar[tuple[float, ...]] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    site: str
    spatial: Spatial = "drop"
    renormalise: bool = True
    size: Sequence[int] | None = None
    delta_: Tensor = field(init=False, repr=False)

    def on(self, size: Sequence[int]) -> Self:
        """Return the same, fitted as it is, for fields of another grid."""
        moved = copy(self)
        moved.size = tuple(size)
        if self.about_ is not None:
            settings = {**self.about_["settings"], "size": moved.size}
            moved.about_ = {**self.about_, "settings": settings}
        return moved

    def _contrast(self, model: Model, examples: Examples) -> None:
        if self.spatial not in ("drop", "pad", "interpolate", "none"):
            raise InputError(
                f"spatial must be drop, pad, interpolate or none, got {self.spatial!r}"
            )
        feature = self._mean(model, examples.positive)
        control = self._mean(model, examples.negative)
        if feature.shape != control.shape:
            raise InputError(
                "both regimes need one grid, got fields of shape "
                f"{tuple(feature.shape)} and {tuple(control.shape)}"
            )
        delta = feature - control
        if not delta.isfinite().all() or not delta.any():
            raise InputError(f"the regimes' means must differ and be finite, got {delta.norm():g}")
        self.delta_ = (delta / delta.norm()).float()

    def _mean(self, model: Model, inputs: Sequence[Any]) -> Tensor:
        """Return the mean field over all samples, float64."""
        total, count = torch.zeros((), dtype=torch.float64), 0
        for batch in track(inputs, "reading fields"):
            fields = model.run(batch, record=self.site)[self.site]
            if fields.dim() - 2 not in _MODES:
                raise InputError(
                    f"{self.site} must hold batches of fields, (B, C, Y, X) or (B, C, Z, Y, X), "
                    f"got shape {tuple(fields.shape)}"
                )
            if count and fields.shape[1:] != total.shape:
                raise InputError(
                    "all fields need one grid, got shapes "
                    f"{tuple(total.shape)} and {tuple(fields.shape[1:])}"
                )
            total, count = total + fields.double().sum(0).cpu(), count + len(fields)
        return total / count

    def _act(self, strength: Strength) -> list[Edit]:
        delta_XC = self._fitting().flatten(1).T.contiguous()
        return [Edit(self.site, Injected(delta_XC, self.renormalise, strength=strength))]

    def _fitting(self) -> Tensor:
        """Return the field on the grid that is asked for, (C, ...)."""
        own = self.delta_.shape[1:]
        size = tuple(self.size or own)
        if len(size) != len(own) or min(size) < 1:
            raise InputError(f"the grid must have {len(own)} axes of at least 1, got {size}")
        if self.spatial == "drop":
            return self.delta_.mean(tuple(range(1, self.delta_.dim())), keepdim=True)
        if size == tuple(own):
            return self.delta_
        if self.spatial == "none":
            raise InputError(f"without a spatial mode the grid must be {tuple(own)}, got {size}")
        if self.spatial == "pad":
            return _padded(self.delta_, size)
        whole = torch.nn.functional.interpolate(self.delta_[None], size, mode=_MODES[len(size)])
        return whole[0]


def _padded(delta: Tensor, size: Sequence[int]) -> Tensor:
    """Crop the middle of axes that are too long, put zeros after those that are too short."""
    for axis, (own, wanted) in enumerate(zip(delta.shape[1:], size, strict=True), start=1):
        delta = delta.narrow(axis, max(own - wanted, 0) // 2, min(own, wanted))
    whole = delta.new_zeros(len(delta), *size)
    whole[tuple(slice(n) for n in delta.shape)] = delta
    return whole
