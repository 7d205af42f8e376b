"""Edits: what to write at a site, and where. Frozen data that can be saved and composed.

Shapes: B batch, T tokens, D width, J directions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from actkit.core.edits.operation import Operation, brief, working_dtype
from actkit.core.edits.operations import Add, Affine, Apply, Clamp, ProjectOut, Scale, Set, Swap
from actkit.core.edits.where import Where, indices
from actkit.core.errors import EditError
from actkit.core.run.context import ForwardContext
from actkit.core.run.recording import Recording
from actkit.core.sites.site import Site

_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Edit:
    """One operation at one site (or at all that match a pattern), and where it acts.

    Args:
        site: A site or a pattern of sites.
        operation: What is done there.
        where: Where it acts.
        batch_rows: Rows of the batch that are the edit's whole batch, where several edited versions
            of one batch run together; all if None.
    """

    site: str
    operation: Operation
    where: Where = field(default_factory=Where)
    batch_rows: slice | None = None

    def __post_init__(self) -> None:
        """Keep a site that was given as such by its name."""
        if isinstance(self.site, Site):
            object.__setattr__(self, "site", self.site.name)

    def __repr__(self) -> str:
        """Return one line: what is done, where, tensors by shape and norm."""
        where = "" if self.where.everywhere else f"; where {self.where}"
        own = self.batch_rows
        rows = "" if own is None else f"; rows {own.start} to {own.stop}"
        told = self.operation.summary()
        said = f": {told}" if told else ""
        return f"Edit({self.operation.name} at {self.site}{said}{where}{rows})"

    def write(self, x: Tensor, context: ForwardContext) -> Tensor:
        """Return the new (B, T, ...) values, x itself if none is meant; the operation is like x.

        The operation's tensors are as large as the site or, on the axes of chosen rows, heads
        and units, as large as the choice. Without gradients, an edit of a block of rows writes
        into x, since many of them would copy all rows again and again.
        """
        if self.batch_rows is not None:
            return self._write_part(x, context, self.batch_rows)
        if context.each > 1 and self._is_by_rows(x):
            return self._write_each(x, context)
        run = self.operation.acting(context)
        if self.where.everywhere:
            return run(x)
        if not self.where.acts(context, x.shape[1]):
            return x
        mask_BT = self.where.token_mask(context, len(x), x.shape[1])
        chosen = self._chosen(x)
        if not all(len(index) for _, index in chosen):
            return x
        rows = next((index for axis, index in chosen if axis == 0), slice(None))
        if mask_BT is not None and not mask_BT[rows].any():
            return x
        return self._on_axes(run, x, chosen, mask_BT)

    def _write_part(self, x: Tensor, context: ForwardContext, rows: slice) -> Tensor:
        """Write to some rows of the batch only."""
        part = x[rows]
        new = replace(self, batch_rows=None).write(part, context.part(rows))
        if new is part:
            return x
        if torch.is_grad_enabled():
            return x.slice_scatter(new, 0, rows.start, rows.stop)
        x[rows] = new
        # another object than x says that something was written
        return x.view_as(x)

    def _is_by_rows(self, x: Tensor) -> bool:
        """Say whether it matters which row is which: some are chosen, or each has its own."""
        tokens = self.where.tokens
        by_mask = not isinstance(tokens, str | int | slice) and torch.as_tensor(tokens).dim() == 2
        by_row = self.operation.extent(x.dim())[0] > 1
        return self.where.rows is not None or by_mask or by_row

    def _write_each(self, x: Tensor, context: ForwardContext) -> Tensor:
        """Write where each row of the prompt runs as several sequences, which lie side by side."""
        turns = [slice(i, None, context.each) for i in range(context.each)]
        parts = [x[turn] for turn in turns]
        new = [self.write(p, context.part(t)) for p, t in zip(parts, turns, strict=True)]
        if all(n is p for n, p in zip(new, parts, strict=True)):
            return x
        return torch.stack(new, 1).flatten(0, 1)

    def check_width(self, width: int) -> None:
        """Refuse tensors that are neither as wide as their site nor as the units they choose."""
        own = self.operation.width()
        if own in (None, width):
            return
        units = self.where.units
        chosen = None if units is None else len(indices(units, width, "units", _CPU))
        if own != chosen:
            also = "" if units is None else f" and {chosen} chosen units"
            raise EditError(
                f"an edit must be as wide as its site: {self.site} has width {width}{also}, "
                f"the {self.operation.name} has width {own}"
            )

    def _chosen(self, x: Tensor) -> list[tuple[int, Tensor]]:
        """Return the axes of x on which something is chosen, with the indices."""
        where, chosen = self.where, []
        if where.rows is not None:
            chosen.append((0, indices(where.rows, len(x), "rows", x.device)))
        if where.heads is not None:
            if x.dim() != 4:
                raise EditError(
                    f"heads need a site with heads, got {self.site} of shape {tuple(x.shape)}"
                )
            chosen.append((2, indices(where.heads, x.shape[2], "heads", x.device)))
        if where.units is not None:
            chosen.append((-1, indices(where.units, x.shape[-1], "units", x.device)))
        return chosen

    def _on_axes(
        self,
        run: Callable[[Tensor], Tensor],
        x: Tensor,
        chosen: list[tuple[int, Tensor]],
        mask_BT: Tensor | None,
    ) -> Tensor:
        """Run the operation on the chosen part of x; where it is sized for all, on all."""
        if not chosen:
            return _masked(run(x), x, mask_BT)
        (axis, index), *rest = chosen
        if self.operation.extent(x.dim())[axis] == x.shape[axis] > 1:
            part = self._on_axes(run, x, rest, mask_BT).index_select(axis, index)
        else:
            mask_BT = mask_BT[index] if mask_BT is not None and axis == 0 else mask_BT
            part = self._on_axes(run, x.index_select(axis, index), rest, mask_BT)
        return x.index_copy(axis, index, part)


def axes_for_edits(site: Site, x: Tensor, edits: Sequence[Edit], batch: int) -> str:
    """Return the axes of a tensor that edits write into; "" if they need not be known.

    Raises:
        SiteError: They are not known, and an edit asks which are rows or units.
    """
    everywhere = all(e.where.everywhere for e in edits)
    if site.known is not None and everywhere and all(e.operation.needs_no_axes for e in edits):
        return ""
    axes = site.axes_of(x)
    alike = everywhere and all(e.operation.extent(3)[:2] == (1, 1) for e in edits)
    if site.known is not None and not alike:
        site.known.check_samples(x, axes, batch)
    return axes


def _masked(new: Tensor, x: Tensor, mask_BT: Tensor | None) -> Tensor:
    if mask_BT is None:
        return new
    return torch.where(mask_BT.reshape(*mask_BT.shape, *[1] * (x.dim() - 2)), new, x)


def as_edits(edits: Any) -> list[Edit]:
    """Return edits as a list; one edit alone is a list of one.

    Raises:
        EditError: Something among them is no edit.

    Example:
        >>> as_edits(scale("mlp_out.1", 0.5))
        [Edit(scale at mlp_out.1: factor 0.5)]
    """
    if isinstance(edits, Edit):
        return [edits]
    if not isinstance(edits, Iterable) or isinstance(edits, str | Mapping | Tensor):
        raise EditError(f"edits must be an edit or a list of them, got {_not_an_edit(edits)}")
    found = list(edits)
    for edit in found:
        if not isinstance(edit, Edit):
            raise EditError(f"edits must be a list of edits, among them is {_not_an_edit(edit)}")
    return found


def _not_an_edit(value: Any) -> str:
    """Return what stands in an edit's place, and what was probably meant."""
    if isinstance(value, type):
        return f"the class {value.__name__}: make one, fit it and give what its edits() returns"
    if callable(getattr(value, "edits", None)):
        return f"a {type(value).__name__}: give what its edits() returns"
    if isinstance(value, Operation):
        return f"the operation {value!r} without a site: Edit(site, operation)"
    return f"{type(value).__name__} {brief(value)}"


def add(site: str, vector: Tensor, scale: float | Tensor = 1.0, where: Where | None = None) -> Edit:
    """Return an edit that adds `scale` * `vector`.

    Args:
        site: A site or a pattern of sites.
        vector: (D,), one vector; (B, D), one for each row; or (B, T, D). Where rows, heads or
            units are chosen, it may also be as large as the choice.
        scale: A number, or (B,) numbers, one strength for each row.
        where: Where it acts; everywhere if None.

    Example:
        >>> import torch
        >>> edit = add("resid_post.10", torch.tensor([1.0, 2.0]), scale=2.0)
        >>> edit.operation(torch.zeros(1, 1, 2))
        tensor([[[2., 4.]]])
    """
    strength = _strength(scale, "scale", site)
    return Edit(site, Add(_checked(vector, "vector", site), strength), where or Where())


def set(site: str, value: float | Tensor, where: Where | None = None) -> Edit:
    """Return an edit that puts `value` (a number, (D,), (B, D) or (B, T, D)) at the site."""
    return Edit(site, Set(_checked(value, "value", site)), where or Where())


def scale(site: str, factor: float | Tensor, where: Where | None = None) -> Edit:
    """Return an edit that multiplies by `factor`: a number, (D,) or, for each row, (B, 1)."""
    number = _strength(factor, "factor", site)
    return Edit(site, Scale(number), where or Where())


def project_out(site: str, directions: Tensor, where: Where | None = None) -> Edit:
    """Return an edit that removes the span of (D,) or (J, D) directions of any length."""
    directions_JD = _checked(directions, "directions", site)
    directions_JD = directions_JD[None] if directions_JD.dim() == 1 else directions_JD
    if (norms := directions_JD.norm(dim=-1)).eq(0).any():
        raise EditError(f"directions at {site} must not be zero, got lengths {norms.tolist()}")
    basis_JD = _orthonormal(directions_JD.double()).to(working_dtype(directions_JD.dtype))
    return Edit(site, ProjectOut(basis_JD), where or Where())


def clamp(
    site: str,
    low: float,
    high: float,
    direction: Tensor | None = None,
    where: Where | None = None,
) -> Edit:
    """Return an edit that keeps values, or their coordinate along (D,), in [low, high]."""
    if not (isinstance(low, Real) and isinstance(high, Real) and low <= high):
        raise EditError(f"a clamp at {site} needs low <= high, got {low!r} and {high!r}")
    if direction is not None:
        direction = _checked(direction, "direction", site)
        direction = direction.to(working_dtype(direction.dtype))
        if direction.dim() != 1 or not (length := direction.norm()) > 0:
            raise EditError(
                f"the direction of a clamp at {site} must be one vector (D,) and not zero, "
                f"got shape {tuple(direction.shape)}"
            )
        direction = direction / length
    return Edit(site, Clamp(float(low), float(high), direction), where or Where())


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
    """Return an edit that calls `fn` on a copy of (B, T, ...) values; it cannot be saved."""
    if not callable(fn):
        raise EditError(f"apply at {site} needs a function, got {type(fn).__name__}")
    return Edit(site, Apply(fn), where or Where())


def _orthonormal(directions_JD: Tensor) -> Tensor:
    """Return an orthonormal basis of the span, (rank, D)."""
    rank = int(torch.linalg.matrix_rank(directions_JD.detach()))
    if rank == len(directions_JD):  # the QR form can be differentiated
        basis: Tensor = torch.linalg.qr(directions_JD.mT).Q.mT
    else:
        basis = torch.linalg.svd(directions_JD, full_matrices=False).Vh[:rank]
    return basis


def _strength(value: Any, what: str, site: str) -> float | Tensor:
    if isinstance(value, Tensor):
        return _checked(value, what, site)
    if not isinstance(value, Real) or not isfinite(value):
        raise EditError(f"the {what} at {site} must be a finite number, got {value!r}")
    return float(value)


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
