"""The operations of edits: what is done to the values at a site.

Shapes: B batch, T tokens, D width, J directions. An operation sees x as (B, T, D), at sites with
heads as (B, T, H, K), at attention sites as (B, T, H, S), of an image as (B, Y * X, C).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from textwrap import shorten
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from actkit.core.errors import EditError
from actkit.core.run.context import ForwardContext
from actkit.core.sites.layout import rows_first

HALF = (torch.float16, torch.bfloat16)
"""Dtypes in which a sum of a few hundred products would lose its digits."""


@dataclass(frozen=True, eq=False)
class Operation(ABC):
    """What is done to the values at a site. Tensor fields are (D,), (B, D) or (B, T, D).

    Attributes:
        boundless: The tensor fields that may hold infinite numbers.
        tokenwise: What it does at a token depends on that token alone, so that a run may begin
            at the first token that it changes.
        wide: In half precision it is computed in float32, tensors too, and rounded once; False
            for what only puts values in place, or calls code that is to see the site's own dtype.
    """

    boundless: ClassVar[frozenset[str]] = frozenset()
    tokenwise: ClassVar[bool] = False
    wide: ClassVar[bool] = True

    def __init_subclass__(cls, **settings: Any) -> None:
        """Keep the one-line form, which `dataclass` would replace by one with all numbers."""
        super().__init_subclass__(**settings)
        if "__repr__" not in vars(cls):
            cls.__repr__ = Operation.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        """Return name and fields in one line, tensors by shape and norm."""
        return f"{self.name}({self.summary()})"

    def summary(self) -> str:
        """Return the fields in one line, tensors by shape and norm."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return ", ".join(f"{k} {brief(v)}" for k, v in values.items() if v is not None)

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Return the new values."""

    @property
    def name(self) -> str:
        """Return the operation's name as users call it."""
        return {"ProjectOut": "project_out"}.get(type(self).__name__, type(self).__name__.lower())

    @property
    def neutral(self) -> bool:
        """Say whether nothing would change; such an edit is not even installed."""
        return False

    @property
    def needs_no_axes(self) -> bool:
        """Say whether it does the same wherever rows and units are: one number for all values."""
        return False

    @property
    def may_rest(self) -> bool:
        """Say whether it may leave all values as they are where it acts."""
        return False

    def at(self, context: ForwardContext) -> Callable[[Tensor], Tensor]:
        """Return the operation as it acts in one pass."""
        return self

    def acting(self, context: ForwardContext) -> Callable[[Tensor], Tensor]:
        """Return the operation as it acts in one pass, rounded once in half precision."""
        run = self.at(context)
        return partial(_rounded_once, run) if self.wide else run

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that are tensors."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in values.items() if isinstance(v, Tensor)}

    def like(self, x: Tensor, axes: str) -> Self:
        """Return the operation with its tensors on x's device, in the dtype it computes in."""
        dtype = working_dtype(x.dtype) if self.wide else x.dtype
        alike = {k: _like(v, x, dtype, k not in self.boundless) for k, v in self.tensors().items()}
        return replace(self, **alike)

    def since(self, token: int, axes: str) -> Self:
        """Return the operation for a run that begins at a later token of the same inputs.

        Args:
            token: The column at which the run begins.
            axes: Of the site.
        """
        every = {k: v for k, v in self.tensors().items() if v.dim() == len(axes)}
        return replace(self, **{k: v[:, token:] for k, v in every.items() if v.shape[1] > 1})

    def width(self) -> int | None:
        """Return the width that the site must have, None if any will do."""
        wide = [v.shape[-1] for v in self.tensors().values() if v.dim()]
        return wide[0] if wide else None

    def extent(self, num_axes: int) -> tuple[int, ...]:
        """Return the sizes that the tensors fix of a site's axes, (B, T, ..., D); 1 is any."""
        return (*[1] * (num_axes - 1), self.width() or 1)


@dataclass(frozen=True, eq=False)
class Add(Operation):
    """Add `scale` times a vector."""

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
        first, *rest = _extent(self.vector, num_axes)
        return (max(first, rows), *rest)


@dataclass(frozen=True, eq=False)
class Set(Operation):
    """Put a value in place of what is there."""

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
        return _extent(self.value, num_axes)


@dataclass(frozen=True, eq=False)
class Scale(Operation):
    """Multiply by a factor: a number, (D,) one for each unit, or (B, 1) one for each row."""

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
        return _extent(own, num_axes)


@dataclass(frozen=True, eq=False)
class ProjectOut(Operation):
    """Remove the span of (J, D) directions, kept as an orthonormal basis."""

    tokenwise: ClassVar[bool] = True
    basis_JD: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return x - x Q^T Q, with Q the basis."""
        return x - (x @ self.basis_JD.mT) @ self.basis_JD


@dataclass(frozen=True, eq=False)
class Clamp(Operation):
    """Keep values, or their coordinate along one unit direction, in [low, high]."""

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

    tokenwise: ClassVar[bool] = True
    matrix: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return x A^T + b."""
        return torch.nn.functional.linear(x, self.matrix, self.bias)


@dataclass(frozen=True, eq=False)
class Swap(Operation):
    """Put in what another run had at the same site; the value has the site's own axes."""

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
        return replace(self, value=rows_first(_like(self.value, x, x.dtype), axes))

    def width(self) -> int | None:
        """Checked when it runs, since the shape depends on the inputs."""
        return None

    def extent(self, num_axes: int) -> tuple[int, ...]:
        """Return the recording's axes."""
        return tuple(self.value.shape)


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


def brief(value: Any) -> str:
    """Return a value in a few words: a tensor by shape and norm, a function by its name.

    Example:
        >>> brief(torch.ones(3, 4)), brief(0.5), brief(torch.ones(2))
        ('(3, 4) of norm 3.46', '0.5', '[1, 1]')
    """
    if isinstance(value, Tensor):
        return _brief_tensor(value.detach())
    if isinstance(value, float):
        return f"{value:.4g}"
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    return shorten(repr(value), 60, placeholder="...")


def _brief_tensor(value: Tensor) -> str:
    dtype = "" if value.dtype == torch.float32 else f" {str(value.dtype).removeprefix('torch.')}"
    if value.is_meta:
        return f"{tuple(value.shape)}{dtype} on meta"
    if value.dim() == 0:
        return f"{value.item():.4g}{dtype}"
    if value.dim() == 1 and len(value) <= 4:
        return f"[{', '.join(f'{n:.4g}' for n in value.tolist())}]{dtype}"
    if not value.is_floating_point():
        return f"{tuple(value.shape)}{dtype}"
    return f"{tuple(value.shape)}{dtype} of norm {value.double().norm().item():.3g}"


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which sums and products of values of a dtype are formed.

    Example:
        >>> working_dtype(torch.bfloat16), working_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.float32 if dtype in HALF else dtype


def _rounded_once(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run an operation in the dtype it computes in; return x itself where it does."""
    if x.dtype not in HALF:
        return run(x)
    wide = x.float()
    new = run(wide)
    return x if new is wide else new.to(x.dtype)


def _like(value: Tensor, x: Tensor, dtype: torch.dtype, bounded: bool = True) -> Tensor:
    """Return the value on x's device and in a dtype; refuse one too large for x's if bounded.

    Whole numbers, which are indices, keep their dtype.
    """
    new = value.to(x.device, dtype if value.is_floating_point() else value.dtype)
    narrowed = value.is_floating_point() and value.dtype != x.dtype
    if bounded and narrowed and not new.to(x.dtype).isfinite().all():
        raise EditError(
            f"an edit must be finite in its site's {x.dtype}, got {value.dtype} "
            f"up to {value.abs().max().item():.3g} in shape {tuple(value.shape)}"
        )
    return new


def _extent(value: Tensor, num_axes: int) -> tuple[int, ...]:
    """Return the sizes of a (D,), (B, D) or (B, T, D) value along (B, T, D); 1 is any."""
    units, lead = num_axes - 2, max(value.dim() - (num_axes - 2), 0)
    first = {0: (1, 1), 1: (*value.shape[:1], 1)}.get(lead, tuple(value.shape[:2]))
    own = value.shape[lead:]
    return (*first, *[1] * (units - len(own)), *own)


def spread(value: Tensor, x: Tensor) -> Tensor:
    """Return a (D,), (B, D) or (B, T, D) value so that it broadcasts against (B, T, D)."""
    if value.dim() <= x.dim() - 2 and value.shape == x.shape[x.dim() - value.dim() :]:
        return value
    lead = value.dim() - (x.dim() - 2)
    value = value.unsqueeze(1) if lead == 1 else value
    sizes = zip(reversed(value.shape), reversed(x.shape), strict=False)
    if value.dim() > x.dim() or any(n not in (1, m) for n, m in sizes):
        raise EditError(
            f"a value must broadcast to the site's shape {tuple(x.shape)}, got {tuple(value.shape)}"
        )
    return value


def strength(number: float | Tensor, x: Tensor) -> float | Tensor:
    """Return a number, or (B,) numbers as (B, 1, ...) so that each row has its own."""
    if not isinstance(number, Tensor) or number.dim() == 0:
        return number
    if number.shape != (len(x),):
        raise EditError(
            f"strengths must be one for each of {len(x)} rows, got shape {tuple(number.shape)}"
        )
    return number.reshape(-1, *[1] * (x.dim() - 1))
