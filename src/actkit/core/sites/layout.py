"""Where a point's values lie inside the tensor that a module passes on.

Shapes: B batch, T tokens, H heads, K head width, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from actkit.core.errors import SiteError


@dataclass(frozen=True, slots=True)
class Layout:
    """A view of a tensor: which span of its last axis, split into which heads.

    `get` returns a view, so `put` is a copy of the tensor with that view overwritten.

    Args:
        span: Start and end on the last axis, for projections that are fused side by side.
        heads: Split the last axis into this many heads.
        slot: (index, number) for fused projections that are interleaved inside each head.
        flat: Batch and tokens share the first axis and are split again.
        channels_first: The tensor is an image (B, D, Y, X), its tokens are the pixels.
        tokens_first: Tokens stand on the first axis and the batch on the second, (T, B, ...).
        channels_last: The tensor is an image (B, Y, X, D), its tokens are the pixels.
    """

    span: tuple[int, int] | None = None
    heads: int | None = None
    slot: tuple[int, int] | None = None
    flat: bool = False
    channels_first: bool = False
    tokens_first: bool = False
    channels_last: bool = False

    def get(self, x: Tensor, batch: int) -> Tensor:
        """Return the point's (B, T, ...) view of the module's tensor.

        Raises:
            SiteError: The second axis of a tensor with its tokens first does not hold the batch.
        """
        if self.tokens_first:
            if x.dim() < 3 or x.shape[1] != (batch or x.shape[1]):
                raise SiteError(
                    f"in this stack tensors are (token, batch, ...) and the batch has {batch} "
                    f"rows, got shape {tuple(x.shape)}: read another module of it"
                )
            x = x.transpose(0, 1)
        if self.channels_first:
            x = x.flatten(2).transpose(1, 2)
        if self.channels_last:
            x = x.flatten(1, 2)
        if self.flat:
            x = x.view(batch, -1, *x.shape[1:])
        if self.span is not None:
            x = x[..., self.span[0] : self.span[1]]
        if self.heads is not None:
            x = x.view(*x.shape[:-1], self.heads, -1)
        if self.slot is not None:
            index, number = self.slot
            x = x.view(*x.shape[:-1], number, -1)[..., index, :]
        return x

    def put(self, x: Tensor, value: Tensor, batch: int) -> Tensor:
        """Return the module's tensor with the point's view replaced by `value`."""
        if self == PLAIN:
            return value
        changed = x.clone()
        self.get(changed, batch).copy_(value)
        return changed


PLAIN = Layout()


def rows_first(x: Tensor, axes: str) -> Tensor:
    """Return a view (B, T, ...) in which each [b, t] is one row.

    Attention (B, H, T, S) becomes (B, T, H, S), an image (B, C, Y, X) becomes (B, Y * X, C).
    Without axes the tensor stays as it is.
    """
    order, places = _order(axes)
    x = x if _is_in_order(axes) else x.permute(order)
    if axes and places == 0:
        return x[:, None]
    return x.flatten(1, places) if places > 1 else x


def rows_back(rows: Tensor, axes: str, like: Tensor) -> Tensor:
    """Undo `rows_first`; `like` has the shape to return to, and the order in memory.

    Kernels sum in another order where memory is ordered otherwise, and round otherwise.
    """
    order, _ = _order(axes)
    same = rows.shape == like.shape and rows.stride() == like.stride()
    if same and _is_in_order(axes):
        return rows
    x = rows.reshape([like.shape[i] for i in order]).permute(_inverse(order)) if axes else rows
    if x.shape != like.shape or x.stride() == like.stride():
        return x
    strides = like.stride()
    outermost = sorted(range(x.dim()), key=lambda i: -strides[i])
    if _is_part(like, outermost):
        return x.new_empty_strided(like.shape, strides).copy_(x)
    flat = x.permute(outermost).reshape(-1)  # axes of one place, too, get their strides anew
    return flat.view([like.shape[i] for i in outermost]).permute(_inverse(outermost))


def _is_part(x: Tensor, outermost: list[int]) -> bool:
    """Say whether a tensor lies in memory with gaps between its numbers, none of them shared."""
    held = 1  # numbers from the first to the last of what lies inside
    gaps = False
    for i in reversed(outermost):
        if x.shape[i] == 1:
            continue
        if x.stride(i) < held:
            return False
        gaps |= x.stride(i) > held
        held = x.stride(i) * (x.shape[i] - 1) + held
    return gaps


def _inverse(order: Sequence[int]) -> list[int]:
    return [order.index(i) for i in range(len(order))]


@cache
def _order(axes: str) -> tuple[tuple[int, ...], int]:
    """Return the axes in the order samples, places, units, and how many of them are places."""
    samples = [i for i, a in enumerate(axes) if a == "B"]
    places = [i for i, a in enumerate(axes) if a in "TZYX"]
    units = [i for i, a in enumerate(axes) if a not in "BTZYX"]
    return (*samples, *places, *units), len(places)


@cache
def _is_in_order(axes: str) -> bool:
    """Say whether samples come first and units last."""
    order, _ = _order(axes)
    return order == tuple(range(len(order)))
