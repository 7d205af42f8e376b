"""Edits: what to write at a site, and where. Frozen data that can be saved and composed.

Shapes: B batch, T tokens, D width, J directions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from actkit.core.errors import EditError
from actkit.core.moment import Moment
from actkit.core.operations import (
    Add,
    Affine,
    Apply,
    Clamp,
    Operation,
    ProjectOut,
    Scale,
    Set,
    Swap,
)
from actkit.core.recording import Recording
from actkit.core.where import Where, indices


@dataclass(frozen=True, eq=False)
class Edit:
    """One operation at one site (or at all that match a pattern), and where it acts."""

    site: str
    operation: Operation
    where: Where = field(default_factory=Where)

    def write(self, x: Tensor, moment: Moment) -> Tensor:
        """Return the new (B, T, ...) values; the operation is already like x."""
        if self.where.everywhere:
            return self.operation(x)
        if not self.where.acts(moment):
            return x
        if self.where.rows is None:
            return self._write_rows(x, self.where.token_mask(moment, len(x), x.shape[1]))
        rows = indices(self.where.rows, len(x), "rows", x.device)
        mask = self.where.token_mask(moment, len(x), x.shape[1])
        mask = None if mask is None else mask[rows]
        return x.index_copy(0, rows, self._write_rows(x.index_select(0, rows), mask))

    def _write_rows(self, x: Tensor, mask_BT: Tensor | None) -> Tensor:
        new = self._write_units(x)
        if mask_BT is None:
            return new
        return torch.where(mask_BT.reshape(*mask_BT.shape, *[1] * (x.dim() - 2)), new, x)

    def _write_units(self, x: Tensor) -> Tensor:
        """Run the operation on the chosen heads and units, and leave the others."""
        chosen = []
        if self.where.heads is not None:
            if x.dim() != 4:
                raise EditError(f"heads need a site with heads; {self.site} has {x.dim() - 2} axes")
            heads = self.where.heads
            heads = [heads] if isinstance(heads, int) else heads
            chosen.append((2, indices(heads, x.shape[2], "heads", x.device)))
        if self.where.units is not None:
            chosen.append((-1, indices(self.where.units, x.shape[-1], "units", x.device)))
        if self.operation.local:
            return _on_axes(x, chosen, self.operation)
        new = self.operation(x)
        for axis, index in chosen:
            new = x.index_copy(axis, index, new.index_select(axis, index))
        return new


def _on_axes(x: Tensor, chosen: list[tuple[int, Tensor]], fn: Callable[[Tensor], Tensor]) -> Tensor:
    if not chosen:
        return fn(x)
    (axis, index), *rest = chosen
    return x.index_copy(axis, index, _on_axes(x.index_select(axis, index), rest, fn))


def add(site: str, vector: Tensor, scale: float | Tensor = 1.0, where: Where | None = None) -> Edit:
    """Return an edit that adds `scale` * `vector`.

    Args:
        site: A site or a pattern of sites.
        vector: (D,), one vector; (B, D), one for each row; or (B, T, D).
        scale: A number, or (B,) numbers, one strength for each row.
        where: Where it acts; everywhere if None.

    Example:
        >>> import torch
        >>> edit = add("resid_post.10", torch.tensor([1.0, 2.0]), scale=2.0)
        >>> edit.operation(torch.zeros(1, 1, 2))
        tensor([[[2., 4.]]])
    """
    strength = _checked(scale, "scale", site) if isinstance(scale, Tensor) else _number(scale, site)
    return Edit(site, Add(_checked(vector, "vector", site), strength), where or Where())


def set(site: str, value: float | Tensor, where: Where | None = None) -> Edit:
    """Return an edit that puts `value` (a number, (D,), (B, D) or (B, T, D)) at the site."""
    return Edit(site, Set(_checked(value, "value", site)), where or Where())


def scale(site: str, factor: float | Tensor, where: Where | None = None) -> Edit:
    """Return an edit that multiplies by `factor`: a number, (D,) or, for each row, (B, 1)."""
    number = _checked(factor, "factor", site) if isinstance(factor, Tensor) else factor
    return Edit(site, Scale(number), where or Where())


def project_out(site: str, directions: Tensor, where: Where | None = None) -> Edit:
    """Return an edit that removes the span of (D,) or (J, D) directions of any length."""
    directions_JD = _checked(directions, "directions", site)
    directions_JD = directions_JD[None] if directions_JD.dim() == 1 else directions_JD
    if (norms := directions_JD.norm(dim=-1)).eq(0).any():
        raise EditError(f"directions at {site} must not be zero, got lengths {norms.tolist()}")
    basis_DJ = torch.linalg.qr(directions_JD.double().mT).Q
    return Edit(site, ProjectOut(basis_DJ.mT.to(directions_JD.dtype)), where or Where())


def clamp(
    site: str,
    low: float,
    high: float,
    direction: Tensor | None = None,
    where: Where | None = None,
) -> Edit:
    """Return an edit that keeps values, or their coordinate along (D,), in [low, high]."""
    if not low <= high:
        raise EditError(f"a clamp at {site} needs low <= high, got {low} and {high}")
    if direction is not None:
        direction = _checked(direction, "direction", site)
        if not (length := direction.norm()) > 0:
            raise EditError(f"the direction of a clamp at {site} must not be zero")
        direction = direction / length
    return Edit(site, Clamp(low, high, direction), where or Where())


def affine(
    site: str, matrix: Tensor, bias: Tensor | None = None, where: Where | None = None
) -> Edit:
    """Return an edit x A^T + b with A (D, D) and b (D,)."""
    matrix = _checked(matrix, "matrix", site)
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise EditError(f"the matrix at {site} must be square, got shape {tuple(matrix.shape)}")
    bias = None if bias is None else _checked(bias, "bias", site)
    return Edit(site, Affine(matrix, bias), where or Where())


def swap(site: str, recording: Recording, where: Where | None = None) -> Edit:
    """Return an edit that puts in what `recording` holds of the same site."""
    return Edit(site, Swap(_checked(recording[site], "recording", site)), where or Where())


def apply(site: str, fn: Callable[[Tensor], Tensor], where: Where | None = None) -> Edit:
    """Return an edit that calls `fn` on (B, T, ...) values; it cannot be saved."""
    if not callable(fn):
        raise EditError(f"apply at {site} needs a function, got {type(fn).__name__}")
    return Edit(site, Apply(fn), where or Where())


def _number(value: Any, site: str) -> float:
    if not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        raise EditError(f"a strength at {site} must be a finite number, got {value!r}")
    return value


def _checked(value: Any, what: str, site: str) -> Tensor:
    tensor = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float32)
    if not tensor.is_floating_point():
        raise EditError(
            f"the {what} at {site} must be floating point, got {tensor.dtype} "
            f"of shape {tuple(tensor.shape)}"
        )
    if not (finite := tensor.isfinite()).all():
        raise EditError(
            f"the {what} at {site} must be finite, got {int((~finite).sum())} NaN or infinite "
            f"of {tensor.numel()} in shape {tuple(tensor.shape)}"
        )
    return tensor
