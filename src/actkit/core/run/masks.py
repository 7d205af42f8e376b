"""What masks tell of tokens: which are padding, and where documents that share a row begin.

Shapes: B batch, T tokens of a pass, P tokens up to its end.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def sees(mask: Tensor) -> Tensor:
    """Return which token sees which, (B, T, P) bool, from a (B, 1, T, P) mask, bool or added."""
    seen = mask[:, 0]
    return seen if seen.dtype == torch.bool else seen > torch.finfo(seen.dtype).min / 2


def valid_columns(given: Any, total: int) -> Tensor | None:
    """Return which of the (B, P) tokens are no padding; None if a mask does not speak of them.

    Of a mask (B, 1, T, P) those are valid that some token sees. Masks of static caches are wider.
    """
    mask = given.get("full_attention") if isinstance(given, Mapping) else given
    if not isinstance(mask, Tensor) or mask.shape[-1] < total:
        return None
    if mask.dim() == 2:
        return mask[:, :total].bool()
    if mask.dim() == 4 and mask.shape[1] == 1:
        return sees(mask)[..., :total].any(1)
    return None


def packed_by_mask(mask: Any, length: int) -> Tensor | None:
    """Return the (B, T) tokens with which a (B, 1, T, T) mask lets documents begin, None if none.

    A document's tokens all look back to its first; a window's first moves on with each token.
    """
    if not isinstance(mask, Tensor) or mask.dim() != 4 or length < 2:
        return None
    seen = sees(mask)[:, :length, :length]
    order = torch.arange(length, device=mask.device)
    begins = (seen.long().argmax(-1) == order) & seen.diagonal(dim1=1, dim2=2)
    begins[:, 0] = False
    return begins if begins.any() else None


def packed_by_positions(ids: Any, valid_BT: Tensor) -> Tensor | None:
    """Return the (B, T) tokens at which position ids start again, None if they do not."""
    batch, length = valid_BT.shape
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[1] != length:
        return None
    begins = torch.zeros_like(valid_BT)
    begins[:, 1:] = (ids.expand(batch, -1)[:, 1:] == 0) & valid_BT[:, :-1]
    return begins if begins.any() else None
