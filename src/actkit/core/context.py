"""What is known of one forward pass while it runs: its step, validity and positions.

Shapes: B batch, T tokens of this pass, P tokens seen so far.
"""

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor

from actkit.core.recording import Rows

_CACHES = ("past_key_values", "layer_past", "cache_params")


class ForwardContext:
    """One forward pass of one stack; hooks at its door keep it up to date.

    Attributes:
        step: 0 for a prompt, then the number of the generated token; of a network without
            tokens, a sampler's for example, the number of the call.
        writing: Whether this pass goes on from a cache, with tokens that the network wrote.
        batch: Number of rows, 0 before the first pass.
        device: Where the pass runs.
        frames: From lengths of the inputs (samples of sound) to numbers of rows, (B,) to (B,);
            None where the mask speaks of the rows themselves.
        memory: What controllers remember, by their keys; empty when a prompt begins.
    """

    def __init__(self, memory: dict[Any, dict[Any, Any]] | None = None) -> None:
        """Start before any pass, with a memory that the contexts of one run share."""
        self.frames: Callable[[Tensor], Tensor] | None = None
        self.memory = {} if memory is None else memory
        self.step, self.writing = 0, False
        self.batch = 0
        self.device = torch.device("cpu")
        self._mask: Tensor | None = None
        self._tokens: Tensor | None = None
        self._past = self._length = self._given = 0
        self._begun = False
        self._prompt: Tensor | None = None
        self._rows: dict[tuple[int, int], Rows] = {}

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of a pass that begins, from the arguments of the stack's module."""
        mask, seen = self._mask, self._past + self._length
        first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        if first is not None:
            self.batch, self.device = len(first) if first.dim() else 1, first.device
        ids = kwargs.get("input_ids", args[0] if args else None)
        is_ids = isinstance(ids, Tensor) and ids.dim() == 2 and not ids.is_floating_point()
        self._tokens = ids if is_ids else None
        embeds = kwargs.get("inputs_embeds")
        sequence = next((s for s in (self._tokens, embeds, first) if s is not None), None)
        has_tokens = (
            isinstance(sequence, Tensor) and sequence.dim() == 2 + sequence.is_floating_point()
        )
        counts = has_tokens and not self.frames
        self._length = sequence.shape[1] if counts and sequence is not None else 0
        self._past, self._rows = _past(kwargs, seen), {}
        self._mask = _mask(kwargs.get("attention_mask"), self._past + self._length)
        self.writing = self._past > 0 and self._begun
        sampling = self._begun and self._tokens is None and embeds is None
        self.step = self.step + 1 if self.writing or sampling else 0
        self._begun = True
        if not self.writing:
            self._prompt, self._given = None, self._past + self._length
        elif self._mask is None and mask is not None:
            # Mamba is told of the padding with the prompt only
            self._mask = torch.cat([mask, mask.new_ones(len(mask), self._length)], 1)

    def tell(self, tokens: Tensor | None, valid: Tensor | None) -> None:
        """Fill in what the stack's own arguments did not say (a caller's token ids, validity).

        A stack with token ids of its own, such as a decoder, is not spoken of.
        """
        shape = (self.batch, self._length)
        if self._tokens is None and tokens is not None and tokens.shape == shape:
            self._tokens = tokens
        fits = valid is not None and (valid.shape == shape or self.frames is not None)
        if self._mask is None and self._tokens is tokens and fits:
            self._mask = valid

    def part(self, rows: slice) -> "ForwardContext":
        """Return what is known of some rows of this pass."""
        own = copy(self)
        own._mask = None if self._mask is None else self._mask[rows]
        own._tokens = None if self._tokens is None else self._tokens[rows]
        own._prompt, own._rows = None, {}
        own.memory = self.memory.setdefault((rows.start, rows.stop), {})
        return own

    def validity(self, batch: int, num_tokens: int) -> Tensor:
        """Return which of this pass's tokens are no padding, (B, T) bool."""
        mask = self._fitting(batch, num_tokens)
        if mask is None:
            return torch.ones(batch, num_tokens, dtype=torch.bool, device=self.device)
        return mask[:, -num_tokens:].bool()

    def positions(self, batch: int, num_tokens: int) -> Tensor:
        """Return positions counted from each row's first valid token, (B, T) int64."""
        mask = self._fitting(batch, num_tokens)
        if mask is None:
            start = self._past + (self._length - 1 if num_tokens == 1 and self._length else 0)
            return (torch.arange(num_tokens, device=self.device) + start).expand(batch, -1)
        return (mask.long().cumsum(-1) - 1).clamp_min(0)[:, -num_tokens:]

    def prompt_length(self, batch: int, num_tokens: int) -> Tensor:
        """Return the number of valid tokens of each row's prompt, (B,) int64."""
        if self._prompt is None or len(self._prompt) != batch:
            ends = self.positions(batch, num_tokens).amax(-1) + 1
            self._prompt = ends - (self._past + self._length - self._given)
        return self._prompt

    def last(self, batch: int, num_tokens: int) -> Tensor:
        """Return a (B, T) bool mask of each row's last valid token."""
        order = torch.arange(num_tokens, device=self.device)
        valid = self.validity(batch, num_tokens)
        return order == torch.where(valid, order, -1).amax(-1, keepdim=True)

    def rows(self, batch: int, num_tokens: int) -> Rows:
        """Return the (B, T) rows of this pass, the same object for all sites of one shape."""
        if (batch, num_tokens) not in self._rows:
            self._rows[batch, num_tokens] = self._new_rows(batch, num_tokens)
        return self._rows[batch, num_tokens]

    def _new_rows(self, batch: int, num_tokens: int) -> Rows:
        valid = self.validity(batch, num_tokens)
        tokens = self._tokens
        if tokens is None or tokens.shape != valid.shape:
            tokens = torch.full(valid.shape, -1, device=self.device)
        sample = torch.arange(batch, device=self.device)[:, None].expand_as(valid)
        return Rows(valid, sample, self.positions(batch, num_tokens), tokens)

    def _fitting(self, batch: int, num_tokens: int) -> Tensor | None:
        """Return the (B, P) mask if it speaks of this pass's tokens, or of its last."""
        mask = self._mask
        if mask is not None and self.frames is not None:
            lengths = self.frames(mask.long().sum(-1))
            return torch.arange(num_tokens, device=self.device) < lengths[:, None]
        if mask is None or mask.shape != (batch, self._past + self._length):
            return None
        return mask if num_tokens in (1, self._length) else None


def _mask(given: Any, num_tokens: int) -> Tensor | None:
    """Return the (B, P) mask; a static cache's (B, 1, T, P) is what its last token sees."""
    mask = given.get("full_attention") if isinstance(given, Mapping) else given
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        return None
    if mask.dim() == 2:
        return mask
    seen = mask[:, 0, -1, :num_tokens]
    return seen if seen.dtype == torch.bool else seen == 0


def _past(kwargs: dict[str, Any], seen: int) -> int:
    """Return how many tokens the cache among the arguments holds.

    Args:
        kwargs: Of a stack's call.
        seen: Tokens of the passes before, for a cache of states, which does not count them.
    """
    cache = next((c for n in _CACHES if (c := kwargs.get(n)) is not None), None)
    layers = getattr(cache, "layers", ())
    if cache is None or not hasattr(cache, "get_seq_length"):
        return 0
    if layers and not any(hasattr(layer, "get_seq_length") for layer in layers):
        return seen if cache.has_previous_state() else 0
    return int(cache.get_seq_length())
