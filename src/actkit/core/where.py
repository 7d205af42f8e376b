"""Where an edit acts: which tokens, rows, heads, units and steps.

Shapes: B batch, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actkit.core.errors import EditError
from actkit.core.moment import Moment

Index = int | slice | Sequence[int] | Tensor
PHASES = ("all", "prompt", "generated", "last")


@dataclass(frozen=True, eq=False)
class Where:
    """Where an edit acts; the default is everywhere.

    Args:
        tokens: "all"; "prompt", the tokens that were given; "generated", those that the model
            wrote; "last", the last token of each row in each forward pass; a position, several,
            or a slice of positions, counted from each row's first valid token (negative ones
            from the end of its prompt) and going on through generation; or a (B, T) bool mask
            over the prompt.
        rows: Rows of the batch: index, slice, several indices or a (B,) bool mask.
        heads: Heads, at sites that have them.
        units: Entries of the last axis.
        steps: Forward passes: 0 is the prompt, 1 the first generated token; for a sampler of
            another kind the calls of the network.
    """

    tokens: str | Index = "all"
    rows: Index | None = None
    heads: int | Sequence[int] | None = None
    units: Index | None = None
    steps: Index | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown word."""
        if isinstance(self.tokens, str) and self.tokens not in PHASES:
            known = ", ".join(map(repr, PHASES))
            raise EditError(
                f"tokens must be one of {known}, a slice or a mask, got {self.tokens!r}"
            )

    @property
    def everywhere(self) -> bool:
        """Say whether nothing is left out."""
        rest = (self.rows, self.heads, self.units, self.steps)
        return isinstance(self.tokens, str) and self.tokens == "all" and rest == (None,) * 4

    def acts(self, moment: Moment) -> bool:
        """Say whether the edit acts at all in this forward pass."""
        if self.steps is not None and moment.step not in _members(self.steps, moment.step + 1):
            return False
        if isinstance(self.tokens, str):
            return {"prompt": moment.step == 0, "generated": moment.step > 0}.get(self.tokens, True)
        return not isinstance(self.tokens, Tensor) or moment.step == 0

    def token_mask(self, moment: Moment, batch: int, num_tokens: int) -> Tensor | None:
        """Return which tokens are meant as (B, T) bool, None for all of them."""
        if isinstance(self.tokens, Tensor):
            return self._given_mask(moment, batch, num_tokens)
        if self.tokens in ("all", "prompt", "generated"):
            return None
        if self.tokens == "last":
            return moment.last(batch, num_tokens)
        return self._at_positions(moment, batch, num_tokens)

    def _given_mask(self, moment: Moment, batch: int, num_tokens: int) -> Tensor:
        mask = torch.as_tensor(self.tokens)
        if mask.dtype != torch.bool or mask.shape[-1] != num_tokens or mask.shape[0] != batch:
            raise EditError(
                f"a token mask must be bool of shape ({batch}, {num_tokens}), "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        return mask.to(moment.device)

    def _at_positions(self, moment: Moment, batch: int, num_tokens: int) -> Tensor:
        position_BT = moment.positions(batch, num_tokens)
        length_B1 = moment.prompt_length(batch, num_tokens)[:, None]
        if isinstance(self.tokens, slice):
            start, stop, step = self.tokens.start or 0, self.tokens.stop, self.tokens.step or 1
            if step < 1:
                raise EditError(f"a slice of tokens must run forwards, got step {step}")
            start_B1 = length_B1 * (start < 0) + start
            inside = (position_BT >= start_B1) & ((position_BT - start_B1) % step == 0)
            if stop is not None:
                inside = inside & (position_BT < length_B1 * (stop < 0) + stop)
        else:
            wanted = torch.as_tensor(self.tokens, device=position_BT.device).reshape(-1)
            wanted_BN = torch.where(wanted < 0, length_B1 + wanted, wanted)
            inside = (position_BT[..., None] == wanted_BN[:, None]).any(-1)
        return inside & moment.validity(batch, num_tokens)

    def described(self) -> dict[str, Any]:
        """Return the plain data of all fields but tensors, for JSON."""
        return {
            k: _plain(getattr(self, k))
            for k in ("tokens", "rows", "heads", "units", "steps")
            if not isinstance(getattr(self, k), Tensor)
        }


def indices(index: Index, size: int, what: str, device: torch.device) -> Tensor:
    """Return an index, slice, sequence or bool mask as (n,) int64 indices below `size`."""
    every = torch.arange(size, device=device)
    chosen = torch.as_tensor(index, device=device) if not isinstance(index, slice) else index
    if isinstance(chosen, Tensor) and chosen.dtype == torch.bool and len(chosen) != size:
        raise EditError(f"a mask of {what} must have {size} entries, got {len(chosen)}")
    if isinstance(chosen, Tensor) and chosen.dtype != torch.bool:
        outside = (chosen >= size) | (chosen < -size)
        if outside.any():
            raise EditError(f"{what} must be below {size}, got {chosen.tolist()}")
    return every[chosen].reshape(-1)


def _members(index: Index, size: int) -> list[int]:
    if isinstance(index, slice):
        return list(range(size))[index]
    return torch.as_tensor(index).reshape(-1).tolist()


def _plain(value: Any) -> Any:
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    return value if isinstance(value, str | int | None) else list(value)


def from_description(data: dict[str, Any], tensors: dict[str, Tensor]) -> Where:
    """Rebuild a `Where` from `described()` and its tensors."""

    def revived(value: Any) -> Any:
        return slice(*value["slice"]) if isinstance(value, dict) else value

    known: dict[str, Any] = {k: revived(v) for k, v in data.items()}
    return Where(**(known | tensors))
