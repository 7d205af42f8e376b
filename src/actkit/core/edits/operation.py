"""What an operation is: what is done to the values at a site, under which name it is saved.

A new operation is a class in one file: it says itself how it is saved, what it does at another
strength, what it is for one row and, if weights can take it in, its affine form.

Shapes: B batch, T tokens, D width, J directions. An operation sees x as (B, T, D), at sites with
heads as (B, T, H, K), at attention sites as (B, T, H, S), of an image as (B, Y * X, C).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from textwrap import shorten
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from actkit.core.errors import EditError
from actkit.core.run.context import ForwardContext

HALF = (torch.float16, torch.bfloat16)
"""Dtypes in which a sum of a few hundred products would lose its digits."""
REGISTERED: dict[str, type["Operation"]] = {}
"""Every class of operation that was made so far, by all names that a file may know it under."""


@dataclass(frozen=True, eq=False)
class AffineForm:
    """What is known of an operation that makes M y + c of y, so that weights can take it in.

    The numbers are the operation's own: what it makes of zeros is c.

    Attributes:
        linear: What M is: "identity"; "diagonal"; "projection", an orthogonal one, which does
            nothing where it has acted before; or "any" other.
        constant: Whether there is a c.
        transposed: The operation with M transposed; only "any" has one, the others are symmetric.
    """

    linear: Literal["identity", "diagonal", "projection", "any"]
    constant: bool = False
    transposed: "Operation | None" = None

    def __post_init__(self) -> None:
        """Refuse a map of which nobody says what its transpose is."""
        if (self.linear == "any") != (self.transposed is not None):
            raise EditError(
                f"an affine form needs `transposed` where linear is 'any' and only there, got "
                f"{self.linear!r} and {self.transposed!r}"
            )


@dataclass(frozen=True, eq=False)
class Operation(ABC):
    """What is done to the values at a site. Tensor fields are (D,), (B, D) or (B, T, D).

    Attributes:
        identifier: The name that files save it under: "Add" of the core, `method.what` of a
            method. It never changes, wherever the class moves. "" for what cannot be saved; the
            class of another package that gives none is saved by its module and class.
        formerly: Names that older files know it under.
        boundless: The tensor fields that may hold infinite numbers.
        tokenwise: What it does at a token depends on that token alone, so that a run may begin
            at the first token that it changes.
        wide: In half precision it is computed in float32, tensors too, and rounded once; False
            for what only puts values in place, or calls code that is to see the site's own dtype.
    """

    identifier: ClassVar[str] = ""
    formerly: ClassVar[tuple[str, ...]] = ()
    boundless: ClassVar[frozenset[str]] = frozenset()
    tokenwise: ClassVar[bool] = False
    wide: ClassVar[bool] = True

    def __init_subclass__(cls, **settings: Any) -> None:
        """Register the class, and keep the one-line form.

        Raises:
            EditError: Another class has the same name in files.
        """
        super().__init_subclass__(**settings)
        if "__repr__" not in vars(cls):  # `dataclass` would give one with all numbers
            cls.__repr__ = Operation.__repr__  # type: ignore[method-assign]
        # a class does other things than its parent, and must not be loaded as it
        cls.identifier = vars(cls).get("identifier", "")
        cls.formerly = vars(cls).get("formerly", ())
        _register(cls)

    @classmethod
    def saved_as(cls) -> str:
        """Return the name that files save it under, "" if it has none."""
        if cls.identifier:
            return cls.identifier
        ours = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
        # files never hold a path of this package, whose code moves; of others' they may
        return "" if ours or "<locals>" in cls.__qualname__ else _place(cls)

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
        return type(self).__name__.lower()

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
        alike = {}
        for name, value in self.tensors().items():
            alike[name] = like_site(value, x, dtype, name not in self.boundless)
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

    def affine_form(self) -> AffineForm | None:
        """Return what is known of M and c if it makes M y + c of every row, None if it does not.

        An operation that returns one can be lowered: baked, exported as an adapter or, if it only
        adds, as a control vector.
        """
        return None

    @property
    def only_adds(self) -> bool:
        """Say whether what it adds to values does not depend on them."""
        form = self.affine_form()
        return form is not None and form.linear == "identity"

    def scaled(self, factor: float | Tensor) -> Self | None:
        """Return the operation at `factor` times its strength, None if it has no strength.

        Args:
            factor: A number, or (B,) numbers, one for each row.
        """
        return None

    def of_row(self, row: int, valid_T: Tensor, axes: str) -> Self:
        """Return the operation as one row has it that runs by itself, without padding.

        Args:
            row: Its number among the rows that the operation's tensors have.
            valid_T: (T,) False at the row's padding.
            axes: Of the site, "" if unknown.
        """
        return self

    @property
    def recorded(self) -> Tensor | None:
        """Return the value that has all of the site's own axes, None if there is none."""
        return None


def _register(cls: type[Operation]) -> None:
    """Keep a class under its names; a class that is made again, as on reload, takes its place."""
    names = [name for name in (cls.saved_as(), *cls.formerly) if name]
    for name in names:
        other = REGISTERED.get(name, cls)
        if _place(other) != _place(cls):
            raise EditError(
                f"an operation's identifier must be its own, {name!r} of {_place(cls)} is "
                f"that of {_place(other)}"
            )
    REGISTERED.update(dict.fromkeys(names, cls))


def _place(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


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


def like_site(value: Tensor, x: Tensor, dtype: torch.dtype, bounded: bool = True) -> Tensor:
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


def value_extent(value: Tensor, num_axes: int) -> tuple[int, ...]:
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


def num_axes_of(axes: str) -> int:
    """Return how many axes an operation sees at a site.

    Example:
        >>> num_axes_of("BTHK"), num_axes_of("BCYX"), num_axes_of("")
        (4, 3, 3)
    """
    return 3 if axes == "BCYX" else max(3, len(axes))


def value_of_row(value: Tensor, row: int, valid_T: Tensor, axes: str) -> Tensor:
    """Return a row's own of a (D,), (B, D) or (B, T, D) value, with one row where it has rows."""
    lead = value.dim() - (num_axes_of(axes) - 2)
    value = entry(value, row) if lead > 0 else value
    return without_padding(value, "BT", valid_T) if lead > 1 else value


def strength_of_row(number: float | Tensor, row: int) -> float | Tensor:
    """Return a row's own of (B,) strengths."""
    several = isinstance(number, Tensor) and number.dim() and len(number) > 1
    return number[row] if isinstance(number, Tensor) and several else number


def entry(value: Tensor, row: int) -> Tensor:
    """Return one row of a value, which may have one for all."""
    return value[row : row + 1] if len(value) > 1 else value


def without_padding(value: Tensor, axes: str, valid_T: Tensor) -> Tensor:
    """Take padding out of a value's axes of tokens."""
    index = valid_T.nonzero()[:, 0].to(value.device)
    for axis, letter in enumerate(axes):
        if letter in "TS" and value.shape[axis] == len(valid_T):
            value = value.index_select(axis, index)
    return value
