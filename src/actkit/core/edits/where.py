"""Where an edit acts: which tokens, rows, heads, units and steps.

Shapes: B batch, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from actkit.core.errors import EditError
from actkit.core.run.context import ForwardContext

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
            over the prompt, padding included.
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
        """Refuse unknown words, and what is no index."""
        if isinstance(self.tokens, str) and self.tokens not in PHASES:
            known = ", ".join(map(repr, PHASES))
            raise EditError(
                f"tokens must be one of {known}, a slice or a mask, got {self.tokens!r}"
            )
        for name in ("tokens", "rows", "heads", "units", "steps"):
            value = getattr(self, name)
            if value is not None and not (name == "tokens" and isinstance(value, str)):
                _check_index(name, value)
        if self.steps is not None and _lowest(self.steps) < 0:
            raise EditError(f"steps count forwards from 0, the prompt, got {self.steps!r}")

    def __repr__(self) -> str:
        """Return the fields that choose, in one line."""
        return f"Where({self})"

    def __str__(self) -> str:
        """Return the fields that choose, tensors by their shapes."""
        chosen = {k: v for k, v in vars(self).items() if v is not None}
        return ", ".join(f"{k}={_short(v)}" for k, v in chosen.items())

    @property
    def everywhere(self) -> bool:
        """Say whether nothing is left out."""
        rest = (self.rows, self.heads, self.units, self.steps)
        every = isinstance(self.tokens, str) and self.tokens == "all"
        return every and all(v is None for v in rest)

    def acts(self, context: ForwardContext, num_tokens: int) -> bool:
        """Say whether the edit acts at all in this forward pass."""
        if self.steps is not None and not self._in_steps(context, num_tokens).any():
            return False
        if isinstance(self.tokens, str) and self.tokens in ("all", "last"):
            return True
        if self.tokens == "generated":
            return context.num_given(num_tokens) < num_tokens
        if isinstance(self.tokens, str) or _is_mask(self.tokens):
            return context.num_given(num_tokens) > 0
        return True

    def token_mask(self, context: ForwardContext, batch: int, num_tokens: int) -> Tensor | None:
        """Return which tokens are meant as (B, T) bool, None for all of them."""
        mask_BT = self._of_tokens(context, batch, num_tokens)
        if self.steps is None:
            return mask_BT
        inside_T = self._in_steps(context, num_tokens).to(context.device)
        if inside_T.all():
            return mask_BT
        every = inside_T.expand(batch, -1)
        return every if mask_BT is None else every & mask_BT

    def _of_tokens(self, context: ForwardContext, batch: int, num_tokens: int) -> Tensor | None:
        if not isinstance(self.tokens, str):
            chooser = self._given_mask if _is_mask(self.tokens) else self._at_positions
            return chooser(context, batch, num_tokens)
        if self.tokens == "last":
            return context.last(batch, num_tokens)
        if self.tokens == "all":
            return None
        given = context.num_given(num_tokens)
        if given in (0, num_tokens):
            return None
        is_given_T = torch.arange(num_tokens, device=context.device) < given
        return (~is_given_T if self.tokens == "generated" else is_given_T).expand(batch, -1)

    def _in_steps(self, context: ForwardContext, num_tokens: int) -> Tensor:
        """Return which of the (T,) tokens are of the chosen steps."""
        step_T = context.steps(num_tokens)
        chosen = _members(() if self.steps is None else self.steps, int(step_T.max()) + 1)
        return torch.isin(step_T, torch.tensor(chosen, dtype=torch.long))

    def _given_mask(self, context: ForwardContext, batch: int, num_tokens: int) -> Tensor:
        """Return the pass's part of a mask over the prompt; what is written is not meant."""
        mask = torch.as_tensor(self.tokens)
        start, end, width = context.prompt_columns(num_tokens)
        if mask.shape == (batch, width):
            mask = mask[:, start:end]
        if mask.shape != (batch, end - start):
            raise EditError(
                f"a token mask must have shape ({batch}, {width}), got {tuple(mask.shape)}"
            )
        return nn.functional.pad(mask.to(context.device), (0, num_tokens - (end - start)))

    def _at_positions(self, context: ForwardContext, batch: int, num_tokens: int) -> Tensor:
        position_BT = context.positions(batch, num_tokens)
        length_B1 = position_BT.new_zeros(1, 1)
        if _counts_from_end(self.tokens):
            length_B1 = context.prompt_length(batch, num_tokens)[:, None]
        if isinstance(self.tokens, slice):
            start, stop, step = self.tokens.start or 0, self.tokens.stop, self.tokens.step or 1
            start_B1 = (length_B1 * (start < 0) + start).clamp_min(0)
            inside = (position_BT >= start_B1) & ((position_BT - start_B1) % step == 0)
            if stop is not None:
                inside = inside & (position_BT < length_B1 * (stop < 0) + stop)
        else:
            wanted = torch.as_tensor(self.tokens, device=position_BT.device).reshape(-1)
            wanted_BN = torch.where(wanted < 0, length_B1 + wanted, wanted)
            inside = (position_BT[..., None] == wanted_BN[:, None]).any(-1)
        return inside & context.validity(batch, num_tokens)

    def since(self, token: int) -> "Where":
        """Return the same for a run that begins at a later column of the same inputs."""
        if isinstance(self.tokens, str) or not _is_mask(self.tokens):
            return self
        return replace(self, tokens=torch.as_tensor(self.tokens)[:, token:])

    def described(self) -> dict[str, Any]:
        """Return the plain data of all fields but tensors, for JSON."""
        return {
            k: _plain(getattr(self, k))
            for k in ("tokens", "rows", "heads", "units", "steps")
            if not isinstance(getattr(self, k), Tensor)
        }


def indices(index: Index, size: int, what: str, device: torch.device) -> Tensor:
    """Return an index, slice, sequence or bool mask as (n,) int64 indices below `size`."""
    if isinstance(index, slice):
        return torch.arange(size, device=device)[index]
    chosen = torch.as_tensor(index, device=device).reshape(-1)
    if chosen.dtype == torch.bool:
        if len(chosen) != size:
            raise EditError(f"a mask of {what} must have {size} entries, got {len(chosen)}")
        return chosen.nonzero()[:, 0]
    chosen = chosen.long()
    if ((chosen >= size) | (chosen < -size)).any():
        raise EditError(f"{what} must be below {size}, got {chosen.tolist()}")
    return chosen % size


def _counts_from_end(index: Any) -> bool:
    """Say whether negative numbers are among some positions."""
    if isinstance(index, slice):
        return min(index.start or 0, index.stop or 0) < 0
    return bool((torch.as_tensor(index) < 0).any())


def _is_mask(index: Any) -> bool:
    return not isinstance(index, str | int | slice) and torch.as_tensor(index).dtype == torch.bool


def _check_index(name: str, value: Any) -> None:
    """Refuse what is no index, and slices that run backwards."""
    if isinstance(value, slice):
        parts = [p for p in (value.start, value.stop, value.step) if p is not None]
        if not all(isinstance(p, int) for p in parts) or (value.step or 1) < 1:
            raise EditError(f"a slice of {name} must hold integers and run forwards, got {value}")
        return
    try:
        chosen = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EditError(f"{name} must be an index, several or a mask, got {value!r}") from error
    if chosen.is_floating_point() or chosen.is_complex():
        raise EditError(f"{name} must be integers or bool, got {chosen.dtype}: {value!r}")


def _lowest(index: Index) -> int:
    """Return the lowest number in an index of integers."""
    if isinstance(index, slice):
        return min(index.start or 0, index.stop or 0)
    return min(torch.as_tensor(index).reshape(-1).tolist(), default=0)


def _members(index: Index, size: int) -> list[int]:
    """Return the numbers below `size` that an index without negative numbers means."""
    if isinstance(index, slice):
        return list(range(size))[index]
    chosen = torch.as_tensor(index).reshape(-1)
    return (chosen.nonzero()[:, 0] if chosen.dtype == torch.bool else chosen).tolist()


def _short(value: Any) -> str:
    return f"tensor{tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _plain(value: Any) -> Any:
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    return value if isinstance(value, str | int | None) else torch.as_tensor(value).tolist()


def from_description(data: dict[str, Any], tensors: dict[str, Tensor]) -> Where:
    """Rebuild a `Where` from `described()` and its tensors."""

    def revived(value: Any) -> Any:
        return slice(*value["slice"]) if isinstance(value, dict) else value

    known: dict[str, Any] = {k: revived(v) for k, v in data.items()}
    return Where(**(known | tensors))
