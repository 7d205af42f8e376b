"""Where a point's values lie inside the tensor that a module passes on.

Shapes: B batch, T tokens, H heads, K head width, D width.
"""

from dataclasses import dataclass

from torch import Tensor


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
        channels_last: The tensor is an image (B, Y, X, D), its tokens are the pixels.
    """

    span: tuple[int, int] | None = None
    heads: int | None = None
    slot: tuple[int, int] | None = None
    flat: bool = False
    channels_first: bool = False
    channels_last: bool = False

    def get(self, x: Tensor, batch: int) -> Tensor:
        """Return the point's (B, T, ...) view of the module's tensor."""
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


def axes_of(x: Tensor) -> str:
    """Return the axes of a tensor that no table describes: BD, BTD or BCYX (more: BCZYX)."""
    return {2: "BD", 3: "BTD"}.get(x.dim(), "BCYX")


def rows_first(x: Tensor, axes: str) -> Tensor:
    """Return a view (B, T, ...) in which each [b, t] is one row.

    Attention (B, H, T, S) becomes (B, T, H, S), an image (B, C, Y, X) becomes (B, Y * X, C).
    """
    if axes == "BHTS":
        return x.transpose(1, 2)
    if axes == "BCYX":
        return x.flatten(2).transpose(1, 2)
    return x[:, None] if axes == "BD" else x


def rows_back(rows: Tensor, axes: str, like: Tensor) -> Tensor:
    """Undo `rows_first`; `like` has the shape to return to."""
    if axes == "BHTS":
        return rows.transpose(1, 2)
    if axes == "BCYX":
        return rows.transpose(1, 2).reshape(like.shape)
    return rows[:, 0] if axes == "BD" else rows
