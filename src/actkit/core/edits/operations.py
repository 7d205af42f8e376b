"""The operations that every network has a use for: add, set, scale, project out, clamp, map, swap.

Shapes: B batch, T tokens, D width, J directions. An operation sees x as (B, T, D), at sites with
heads as (B, T, H, K), at attention sites as (B, T, H, S), of an image as (B, Y * X, C).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from actkit.core.edits.operation import (
    AffineForm,
    Operation,
    entry,
    like_site,
    spread,
    strength,
    strength_of_row,
    value_extent,
    value_of_row,
    without_padding,
)
from actkit.core.errors import EditError
from actkit.core.sites.layout import rows_first


@dataclass(frozen=True, eq=False)
class Add(Operation):
    """Add `scale` times a vector."""

    identifier: ClassVar[str] = "Add"
    tokenwise: ClassVar[bool] = True
    vector: Tensor
    scale: float | Tensor = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return x + scale * vector."""
        return x + strength(self.scale, x) * spread(self.vector, x)

    @property
    def neutral(self) -> bool:
        """Say whether the strength is zero, and no gradient is asked through it."""
        learnt = any(t.requires_grad for t in self.tensors().values())
        return not learnt and not torch.as_tensor(self.scale).any()

    @property
    def needs_no_axes(self) -> bool:
        """Say whether one number is added to all values."""
        return self.vector.dim() == 0 and torch.as_tensor(self.scale).dim() == 0

    def width(self) -> int | None:
        """Return the vector's width."""
        return self.vector.shape[-1] if self.vector.dim() else None

    def extent(self, num_axes: int) -> tuple[int, ...]:
        """Return the vector's axes, with one row for each strength."""
        rows = self.scale.shape[0] if isinstance(self.scale, Tensor) and self.scale.dim() else 1
        first, *rest = value_extent(self.vector, num_axes)
        return (max(first, rows), *rest)

    def affine_form(self) -> AffineForm:
        """Return the form of y + c."""
        return AffineForm("identity", constant=True)

    def scaled(self, factor: float | Tensor) -> Self:
        """Return the operation with `factor` times the scale."""
        return replace(self, scale=self.scale * factor)

    def of_row(self, row: int, valid_T: Tensor, axes: str) -> Self:
        """Return the operation with a row's own vector and strength."""
        vector = value_of_row(self.vector, row, valid_T, axes)
        return replace(self, vector=vector, scale=strength_of_row(self.scale, row))


@dataclass(frozen=True, eq=False)
class Set(Operation):
    """Put a value in place of what is there."""

    identifier: ClassVar[str] = "Set"
    tokenwise: ClassVar[bool] = True
    wide: ClassVar[bool] = False
    value: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return the value, spread over x's shape; a copy, which the network may overwrite."""
        return spread(self.value, x).expand_as(x).clone()

    @property
    def needs_no_axes(self) -> bool:
        """Say whether one number is put in for all values."""
        return self.value.dim() == 0

    def extent(self, num_axes: int) -> tuple[int, ...]:
        """Return the value's axes."""
        return value_extent(self.value, num_axes)

    def of_row(self, row: int, valid_T: Tensor, axes: str) -> Self:
        """Return the operation with a row's own value."""
        return replace(self, value=value_of_row(self.value, row, valid_T, axes))


@dataclass(frozen=True, eq=False)
class Scale(Operation):
    """Multiply by a factor: a number, (D,) one for each unit, or (B, 1) one for each row."""

    identifier: ClassVar[str] = "Scale"
    tokenwise: ClassVar[bool] = True
    factor: float | Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return factor * x."""
        return (spread(self.factor, x) if isinstance(self.factor, Tensor) else self.factor) * x

    @property
    def neutral(self) -> bool:
        """Say whether the factor is one."""
        return not isinstance(self.factor, Tensor) and self.factor == 1

    @property
    def needs_no_axes(self) -> bool:
        """Say whether all values are multiplied by one number."""
        return torch.as_tensor(self.factor).dim() == 0

    def width(self) -> int | None:
        """Return the width that a factor for each unit needs."""
        wide = isinstance(self.factor, Tensor) and self.factor.dim() and self.factor.shape[-1] > 1
        return self.factor.shape[-1] if isinstance(self.factor, Tensor) and wide else None

    def extent(self, num_axes: int) -> tuple[int, ...]:
        """Return the factor's axes."""
        own = self.factor if isinstance(self.factor, Tensor) else torch.tensor(self.factor)
        return value_extent(own, num_axes)

    def affine_form(self) -> AffineForm:
        """Return the form of a diagonal map."""
        return AffineForm("diagonal")

    def of_row(self, row: int, valid_T: Tensor, axes: str) -> Self:
        """Return the operation with a row's own factors."""
        if not isinstance(self.factor, Tensor):
            return self
        return replace(self, factor=value_of_row(self.factor, row, valid_T, axes))


@dataclass(frozen=True, eq=False)
class ProjectOut(Operation):
    """Remove the span of (J, D) directions, kept as an orthonormal basis."""

    identifier: ClassVar[str] = "ProjectOut"
    tokenwise: ClassVar[bool] = True
    basis_JD: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return x - x Q^T Q, with Q the basis."""
        return x - (x @ self.basis_JD.mT) @ self.basis_JD

    @property
    def name(self) -> str:
        """Return the operation's name as users call it."""
        return "project_out"

    def affine_form(self) -> AffineForm:
        """Return the form of a projection."""
        return AffineForm("projection")


@dataclass(frozen=True, eq=False)
class Clamp(Operation):
    """Keep values, or their coordinate along one unit direction, in [low, high]."""

    identifier: ClassVar[str] = "Clamp"
    tokenwise: ClassVar[bool] = True
    low: float
    high: float
    direction: Tensor | None = None

    @property
    def needs_no_axes(self) -> bool:
        """Say whether values are clamped one by one."""
        return self.direction is None

    def __call__(self, x: Tensor) -> Tensor:
        """Return x with its coordinate c moved to clamp(c, low, high)."""
        if self.direction is None:
            return x.clamp(self.low, self.high)
        c = (x * self.direction).sum(-1, keepdim=True)
        return x + (c.clamp(self.low, self.high) - c) * self.direction


@dataclass(frozen=True, eq=False)
class Affine(Operation):
    """Apply a linear map and a bias, as `torch.nn.Linear` does."""

    identifier: ClassVar[str] = "Affine"
    tokenwise: ClassVar[bool] = True
    matrix: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return x A^T + b."""
        return torch.nn.functional.linear(x, self.matrix, self.bias)

    def affine_form(self) -> AffineForm:
        """Return the form of a map and, if there is one, its bias."""
        turned = Affine(self.matrix.mT)
        return AffineForm("any", constant=self.bias is not None, transposed=turned)


@dataclass(frozen=True, eq=False)
class Swap(Operation):
    """Put in what another run had at the same site; the value has the site's own axes."""

    identifier: ClassVar[str] = "Swap"
    tokenwise: ClassVar[bool] = True
    wide: ClassVar[bool] = False
    value: Tensor

    @property
    def needs_no_axes(self) -> bool:
        """Say so: value and site have the same axes, whichever they are."""
        return True

    def __call__(self, x: Tensor) -> Tensor:
        """Return a copy of the other run's values."""
        if self.value.shape[1:] != x.shape[1:] or len(self.value) not in (1, len(x)):
            raise EditError(
                f"a swap needs the same shape on both sides: the run has {tuple(x.shape)}, "
                f"the recording {tuple(self.value.shape)}"
            )
        return self.value.expand_as(x).clone()

    def since(self, token: int, axes: str) -> Self:
        """Return the operation with the value from a token on."""
        start = token if self.value.shape[axes.index("T")] > 1 else 0
        return replace(
            self,
            value=self.value.narrow(
                axes.index("T"), start, self.value.shape[axes.index("T")] - start
            ),
        )

    def like(self, x: Tensor, axes: str) -> Self:
        """Return the operation with its value turned rows first, on x's device."""
        return replace(self, value=rows_first(like_site(self.value, x, x.dtype), axes))

    def width(self) -> int | None:
        """Checked when it runs, since the shape depends on the inputs."""
        return None

    def extent(self, num_axes: int) -> tuple[int, ...]:
        """Return the recording's axes."""
        return tuple(self.value.shape)

    @property
    def recorded(self) -> Tensor:
        """Return the recording's values."""
        return self.value

    def of_row(self, row: int, valid_T: Tensor, axes: str) -> Self:
        """Return the operation with a row's own values."""
        return replace(self, value=without_padding(entry(self.value, row), axes, valid_T))


@dataclass(frozen=True, eq=False)
class Apply(Operation):
    """Call a function of the user's on a copy of x; it returns the same shape and dtype."""

    wide: ClassVar[bool] = False
    fn: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """Return fn(x)."""
        new = self.fn(x.clone())
        if not isinstance(new, Tensor):
            raise EditError(f"a function must return a tensor, got {type(new).__name__}")
        if (new.shape, new.dtype) != (x.shape, x.dtype):
            raise EditError(
                f"a function must return {x.dtype} of shape {tuple(x.shape)}, "
                f"got {new.dtype} of shape {tuple(new.shape)}"
            )
        return new
