"""Elementwise transport: an affine map of each unit, and the states that it is learnt from.

Shapes: N sources, M targets, K pieces of a coupling, B batch, T tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from actkit.core.edits.controller import StrengthOperation
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.recording import Recording, Rows
from actkit.core.sweep.stream import batches
from actkit.model import Model


@dataclass(frozen=True, eq=False)
class Transport(StrengthOperation):
    """Move each unit's z to (1 - s) z + s (slope z + bias), with s the strength.

    Attributes:
        slope: (D,).
        bias: (D,).
        low: (D,); units whose z is below it stay. None: there is no bound.
        high: (D,); units whose z is above it stay.
        pooled: z is the unit's mean over the pixels, and all of them move as far as it does.
    """

    identifier: ClassVar[str] = "linear_act.transport"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer._transport:Transport",)
    slope: Tensor
    bias: Tensor
    low: Tensor | None = None
    high: Tensor | None = None
    pooled: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Return x + s ((slope - 1) z + bias) where low <= z <= high, x elsewhere."""
        z = x.mean(1, keepdim=True) if self.pooled else x
        way = (self.slope - 1) * z + self.bias
        if self.low is not None and self.high is not None:
            way = way.masked_fill((z < self.low) | (z > self.high), 0)
        return x + self.dose(x) * way


def coupled(source_ND: Tensor, target_MD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the optimal coupling of each unit joins: (K, D), (K, D) and (K, 1) shares.

    With as many targets as sources it joins equal ranks; otherwise samples are split, exactly.
    """
    n, m = len(source_ND), len(target_MD)
    device = source_ND.device
    ends = torch.cat(
        [m * torch.arange(1, n + 1, device=device), n * torch.arange(1, m + 1, device=device)]
    )
    ends = torch.unique(ends)  # in shares of 1 / (n m)
    share_K1 = ends.diff(prepend=ends.new_zeros(1))[:, None].to(source_ND) / (n * m)
    source_KD = source_ND.sort(0).values[(ends - 1) // m]
    return source_KD, target_MD.sort(0).values[(ends - 1) // n], share_K1


def pooled(x_BTD: Tensor, rows: Rows) -> Tensor:
    """Return each row's mean over valid tokens, (B, D), in float32 at least.

    The first token of a text is left out, since its massive activation would hide all others.
    """
    first_BT = (rows.position == 0) & (rows.token >= 0)
    later_BT = rows.valid & ~first_BT
    counted_BT = torch.where(later_BT.any(-1, keepdim=True), later_BT, rows.valid)
    x_BTD = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
    weight_BT = (counted_BT / counted_BT.sum(-1, keepdim=True)).to(x_BTD)
    return torch.einsum("bt...,bt->b...", x_BTD, weight_BT)


def pooled_at(rec: Recording, site: str) -> Tensor:
    """Return the (B, D) means of what was recorded at a site, of an image over its pixels."""
    return pooled(rec.rows_first(site), rec.rows_of(site))


def pooled_states(
    model: Model, inputs: Sequence[Any], sites: str | Sequence[str], batch_size: int = 16
) -> tuple[dict[str, Tensor], dict[str, bool]]:
    """Return the (N, D) pooled states at each site, and whether the site holds images.

    Raises:
        InputError: States are NaN or infinite.
    """
    parts: dict[str, list[Tensor]] = {}
    images: dict[str, bool] = {}
    for group in track(list(batches(list(inputs), batch_size)), "reading examples"):
        rec = model.run(group, record=sites)
        for site in rec:
            parts.setdefault(site, []).append(pooled_at(rec, site))
            images[site] = rec.rows_of(site).grid is not None
    return {site: checked(torch.cat(own), site) for site, own in parts.items()}, images


def checked(states_ND: Tensor, site: str) -> Tensor:
    """Return the states.

    Raises:
        InputError: Some are NaN or infinite.
    """
    if lost := int((~states_ND.isfinite()).sum()):
        raise InputError(
            f"states must be finite, got {lost} NaN or infinite at {site} "
            f"in shape {tuple(states_ND.shape)}"
        )
    return states_ND


def joined(inputs: Sequence[Any]) -> Any:
    """Return all inputs as one batch: tensors, and tuples of them, end to end, others listed."""
    if isinstance(inputs[0], Tensor):
        return torch.cat(list(inputs))
    if isinstance(inputs[0], tuple):
        return tuple(torch.cat(parts) for parts in zip(*inputs, strict=True))
    return list(inputs)
