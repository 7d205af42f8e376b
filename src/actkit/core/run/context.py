"""What is known of one forward pass while it runs: its phase, steps, validity and positions.

Everything here was told by who feeds the network (`Told`), was handed to the stack (ids,
embeddings, masks, position ids), or was counted pass by pass. Passes belong together if they hand
on the same cache; how long that cache says it is tells nothing here. What cannot be known is
refused when an edit needs it.

Shapes: B batch, T tokens of this pass, P tokens seen up to its end.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from actkit.core.errors import EditError
from actkit.core.run.caches import caches_among, is_empty
from actkit.core.run.fed import Fed, FedByCache, Told
from actkit.core.run.masks import packed_by_mask, packed_by_positions, valid_columns
from actkit.core.run.recording import Rows


class ForwardContext:
    """One forward pass of one stack; hooks at its module keep it up to date.

    Attributes:
        batch: Number of rows, 0 before the first pass.
        device: Where the pass runs.
        frames: From lengths of the inputs (samples of sound) to numbers of rows, (B,) to (B,);
            None where the mask speaks of the rows themselves.
        memory: What controllers remember, by their keys; empty when a prompt begins.
        begins: Whether a prompt begins with this pass.
        again: Whether this pass, without a cache, runs tokens again that ran before.
        each: Rows of the network for each row of the prompt.
    """

    def __init__(self, module: nn.Module | None = None, virtual: int = 0) -> None:
        """Start before any pass.

        Args:
            module: The stack, whose signature names its arguments.
            virtual: Columns that the network puts in front of each prompt by itself.
        """
        self.frames: Callable[[Tensor], Tensor] | None = None
        self.memory: dict[Any, dict[Any, Any]] = {}
        self.batch, self.device = 0, torch.device("cpu")
        self.begins, self.again, self.each = True, False, 1
        self._names = [] if module is None else list(inspect.signature(module.forward).parameters)
        self._virtual = virtual
        self._by_cache, self._fed = FedByCache(), Fed()
        self._told: Told | None = None
        self._heard: Told | None = None
        self._tokens: Tensor | None = None
        self._embeds: Tensor | None = None
        self._previous: Tensor | None = None
        self._length, self._offset = 0, 0
        self._known = False
        self._valid: Tensor | None = None
        self._begins_BP: Tensor | None = None
        self._ahead = 0
        self._calls = 0
        self._reason, self._is_sampling = "no pass of the network was seen to begin", False
        self._chosen = slice(None)
        self._rows: dict[tuple[int, int], Rows] = {}

    # ---- a pass begins and ends ------------------------------------------------------------

    def begin(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        told: Told | None = None,
        rows_only: bool = False,
    ) -> None:
        """Take note of a pass that begins.

        Args:
            args: Positional arguments of the stack.
            kwargs: Its keyword arguments.
            told: What is told of the prompt; it may speak of another stack.
            rows_only: Only the rows of what is told are this stack's, as for a decoder that
                answers what an encoder read.
        """
        given = dict(zip(self._names, args, strict=False)) | kwargs
        values = [*args, *kwargs.values()]
        self._measure(given, args, values)
        caches = caches_among(values)
        carried, first = self._find_fed(values, caches), told is not self._heard
        self._rows, self._heard, self._calls = {}, told, self._calls + 1
        self.each = self._rows_for_each(told)
        spoken = not rows_only and self._is_spoken_of(told, carried and not first)
        self._told = told if spoken else None
        self._reason = self._reason_told(told, is_of_this_stack=spoken or rows_only)
        self._place(given, carried, first)
        self._validate(given)
        self._begins_BP = self._documents(given)
        self._settle(caches, first or not carried)

    def end(self, output: Any) -> None:
        """Take note of what the pass returned: a cache may be handed on."""
        self._by_cache.end(output, self._fed)

    def beside(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "ForwardContext":
        """Return a context for more passes over the same tokens, on copies of their caches."""
        own = copy(self)
        own._by_cache = self._by_cache.beside(self._by_cache.find([*args, *kwargs.values()]))
        return own

    def again_beside(self) -> "ForwardContext":
        """Return what `beside` returned, for one more of these passes."""
        own = copy(self)
        own._by_cache = self._by_cache.again()
        return own

    def _find_fed(self, values: Iterable[Any], caches: Iterable[Any]) -> bool:
        """Find what was fed on the cache among the arguments; say whether actkit saw it."""
        fed = self._by_cache.find(values)
        if fed is not None:
            self._fed = fed
            return True
        virtual = self._virtual if self._tokens is None else 0
        # what others fed on a cache was not counted
        seen = 0 if all(map(is_empty, caches)) else None
        self._fed = Fed(seen=seen, virtual=virtual)
        return False

    def _reason_told(self, told: Told | None, is_of_this_stack: bool) -> str:
        """Return why phases cannot be known, as far as what was told says; "" if they can."""
        if told is None:
            return ""
        if told.reason or is_of_this_stack or told.turns or not told.width:
            return told.reason
        # a stack that reads no tokens, of an image say, is not taken for one that reads others
        reads_tokens = self._length > 0 and not self._is_sampling
        return "it feeds other tokens than the prompt's" if reads_tokens else ""

    def _measure(
        self, given: Mapping[str, Any], args: tuple[Any, ...], values: Iterable[Any]
    ) -> None:
        """Find rows, tokens and device among the arguments."""
        embeds = given.get("inputs_embeds")
        self._tokens = _ids_among(given, args)
        self._embeds = embeds if isinstance(embeds, Tensor) else None
        self._is_sampling = self._tokens is None and self._embeds is None
        first = next((v for v in values if isinstance(v, Tensor)), None)
        known = (self._tokens, self._embeds, first)
        sequence = next((s for s in known if s is not None), None)
        self.batch, self._length = 0, 0
        if sequence is not None:
            self.batch = len(sequence) if sequence.dim() else 1
            self.device = sequence.device
            self._length = self._num_columns(sequence)

    def _num_columns(self, sequence: Tensor) -> int:
        """Return the tokens of (B, T) ids or (B, T, D) embeddings; 0 of what has no tokens."""
        if self.frames:  # what is counted are samples of sound
            return 0
        num_axes = 3 if sequence.is_floating_point() else 2
        return sequence.shape[1] if sequence.dim() == num_axes else 0

    def _rows_for_each(self, told: Told | None) -> int:
        """Return how many rows run for each row of the prompt."""
        if told is None or not told.rows or self.batch == told.rows:
            return 1
        return told.each if self.batch == told.rows * told.each else 1

    def _is_spoken_of(self, told: Told | None, goes_on: bool) -> bool:
        """Say whether what was told is of this stack: by its ids, or by the number of tokens."""
        if told is None or (told.writes and told.width is None):  # of an image, and not of tokens
            return False
        if goes_on:
            return True
        prompt = told.tokens if told.embeds is None else told.embeds
        if prompt is None:
            return told.width is None and self._is_counted_alike(told)
        fed = self._tokens if told.embeds is None else self._embeds
        if fed is None:
            return self._has_length_of(told, prompt.shape[1])
        own = prompt.to(self.device).repeat_interleave(self.each, 0)
        return self._is_part(fed, own, told.pieces)

    def _is_counted_alike(self, told: Told) -> bool:
        """Say whether what was told of a prompt without tokens counts what this stack counts."""
        if told.valid is None or self.frames is not None:
            return True
        # what is told of samples of sound is not of a stack's frames
        return told.valid.shape[1] == self._length

    def _has_length_of(self, told: Told, width: int) -> bool:
        """Say whether as many columns came as the prompt has; a piece may have any number."""
        if self._length == 0:
            return False
        return told.pieces or self._length in (width, width + self._fed.virtual)

    def _is_part(self, fed: Tensor, prompt: Tensor, pieces: bool) -> bool:
        """Say whether what is fed is the prompt, or that part of it that is due."""
        width = prompt.shape[1]
        if self._length >= width:
            return torch.equal(fed[:, :width], prompt)
        # the prompt comes in pieces, or a cache holds its first columns already
        part = prompt[:, : self._length] if pieces else prompt[:, width - self._length :]
        return torch.equal(fed, part)

    # ---- phase ------------------------------------------------------------------------------

    def _place(self, given: Mapping[str, Any], carried: bool, first: bool) -> None:
        """Find the columns of this pass, and how many of them are the prompt's."""
        seen = self._fed.seen
        offset = seen if seen is not None else self._offset_given(given, first)
        self._known, self._offset = offset is not None, offset or 0
        width = self._prompt_width_told()
        self.again = width is not None and not first and not carried
        if width is None:
            self._place_by_passes(carried)
        elif self._is_further_turn(width, carried):
            self._fed.prompt = self._offset + self._length
        else:
            self._place_by_width(width, first)
        self._ahead = self._fed.prompt - self._offset

    def _place_by_passes(self, carried: bool) -> None:
        """Find where the prompt ends if nobody told its width: what came at once is of it."""
        is_written = self._told is None and carried and self._length == 1
        if not is_written:
            self._fed.prompt = self._offset + self._length
        if self._told is None:
            self._reason = self._reason or self._doubt(carried)

    def _place_by_width(self, width: int, first: bool) -> None:
        """Take the end of the prompt as it was told, and refuse what contradicts it."""
        takes_turns = self._told is not None and self._told.turns
        # a later turn moved the end on, and what was told is the first turn's
        self._fed.prompt = max(width, self._fed.prompt) if takes_turns else width
        self._reason = self._reason or self._contradiction(width, first)
        self._known = self._known and not self._reason

    def _is_further_turn(self, width: int, carried: bool) -> bool:
        """Say whether a user feeds another prompt on the cache, behind the one that was told."""
        if self._told is None or not self._told.turns:
            return False
        # one token is what the network wrote
        return carried and self._offset >= width and self._length > 1

    def _prompt_width_told(self) -> int | None:
        """Return the columns of the prompt with those that the network puts in front of it."""
        if self._told is None or self._told.width is None:
            return None
        return self._told.width + self._fed.virtual

    def _offset_given(self, given: Mapping[str, Any], first: bool) -> int | None:
        """Return how many columns lie before this pass, where actkit did not count them itself."""
        told, mask = self._told, given.get("attention_mask")
        if told is not None and told.past is not None:
            return told.past.shape[1]
        if told is not None and told.width is not None and first and not told.pieces:
            return told.width - self._length
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= self._length:
            return mask.shape[1] - self._length
        return None

    def _contradiction(self, width: int, first: bool) -> str:
        """Return what in this pass does not fit a prompt of that width; "" if all does."""
        told, end = self._told, self._offset + self._length
        if not self._known:
            return "a cache holds tokens that were fed elsewhere"
        if first and told is not None and not told.pieces and end != width:
            return f"the prompt has {width} columns and its pass ends with column {end}"
        if not first and self._offset >= width and self._length > 1:
            return f"{self._length} tokens came at once after the prompt"
        return ""

    def _doubt(self, carried: bool) -> str:
        """Return why the phase of a pass cannot be known of which nothing was told, or ""."""
        if carried:
            return "" if self._known else "a cache was changed between two passes"
        if self._fed.seen is None and self._length == 1:
            return "one token came on a cache that was filled elsewhere"
        if self._adds_to_pass_before():
            return "a pass without a cache repeats the tokens of the pass before and adds to them"
        return ""

    def _adds_to_pass_before(self) -> bool:
        """Say whether this pass's ids begin with all of those of the pass before."""
        before, ids = self._previous, self._tokens
        if before is None or ids is None or len(before) != len(ids):
            return False
        width = before.shape[1]
        return ids.shape[1] > width and torch.equal(ids[:, :width], before)

    def _settle(self, caches: Iterable[Any], fresh: bool) -> None:
        """Keep what the next pass on the same cache needs to know."""
        fed, told = self._fed, self._told
        self._previous = None if caches or told is not None else self._tokens
        goes_on = told is not None and told.pieces and not fresh
        counts_calls = self._is_sampling and self._calls > 1
        self.begins = self._ahead > 0 and not goes_on and not counts_calls
        if self.begins:
            fed.memory = {}
        self.memory = fed.memory
        fed.seen = self._offset + self._length if self._known else None
        fed.valid, fed.begins = self._valid, self._begins_BP
        self._by_cache.keep(caches, fed)

    @property
    def step(self) -> int:
        """Return the step of the pass's last token: 0 of a prompt, n of the n-th written token.

        Of a network without tokens, a sampler's for example, the number of the call.
        """
        self._require_phase()
        written = max(0, self._length - self._ahead)
        return self._calls - 1 if self._is_sampling and not written else written

    @property
    def known_step(self) -> int | None:
        """Return the step; None if it cannot be known."""
        return None if self._reason else self.step

    def steps(self, num_tokens: int) -> Tensor:
        """Return the step of each token, (T,) int64 on the CPU."""
        if num_tokens != self._length or self._is_sampling:
            return torch.full((num_tokens,), self.step, device="cpu")
        self._require_phase()
        return (torch.arange(num_tokens, device="cpu") - self._ahead + 1).clamp_min(0)

    def num_given(self, num_tokens: int) -> int:
        """Return how many of the first tokens are of the prompt; the network wrote the rest."""
        self._require_phase()
        if num_tokens != self._length:
            return 0 if 0 < self._length > self._ahead else num_tokens
        return min(max(self._ahead, 0), num_tokens)

    def prompt_columns(self, num_tokens: int) -> tuple[int, int, int]:
        """Return where the prompt begins and ends in this pass, and its width, in columns."""
        self._require_phase()
        self._require_columns()
        if num_tokens != self._length:
            return 0, num_tokens, num_tokens
        end = self._offset + min(self._length, max(self._ahead, 0))
        return self._offset, end, self._offset + self._ahead

    def _require_phase(self) -> None:
        if self._reason:
            raise EditError(
                "an edit of prompt, written or last tokens, of steps or positions needs them to "
                f"be known, but {self._reason}: say what is fed, m.edited(edits, prompt=...)"
            )

    def _require_columns(self) -> None:
        if not self._known:
            self._require_phase()
            raise EditError(
                "an edit of positions needs them to be known, but a cache among the arguments was "
                "filled elsewhere: give the attention_mask of all its tokens, too"
            )

    # ---- validity and positions -------------------------------------------------------------

    def _validate(self, given: Mapping[str, Any]) -> None:
        """Find which of the (B, P) tokens are no padding."""
        mask = given.get("attention_mask")
        flat = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        if self.frames is not None:  # counted in samples; `frames` makes rows of them
            self._valid = self._validity_heard() if flat is None else flat
        elif self._told is None and flat is None and self._answers_what_was_told():
            self._valid = self._validity_heard()
        else:
            told = self._validity_told()
            self._valid = self._validity_by_mask(mask, flat) if told is None else told

    def _validity_heard(self) -> Tensor | None:
        """Return what was told of validity, be it of this stack or of another."""
        return None if self._heard is None else self._heard.valid

    def _validity_told(self) -> Tensor | None:
        """Return the (B, P) validity that was told; None if it is not of this pass's tokens."""
        told, width = self._told, self._prompt_width_told()
        if told is None or told.valid is None:
            return None
        is_behind = width is not None and self._offset >= width
        if told.turns and is_behind:  # only the first turn was told
            return None
        return self._told_validity(told.valid, told.past)

    def _validity_by_mask(self, mask: Any, flat: Tensor | None) -> Tensor | None:
        """Return the (B, P) validity that a mask tells; None if nothing is padding.

        Args:
            mask: As the stack takes it.
            flat: The same if it is (B, P).
        """
        found = valid_columns(mask, self._offset + self._length)
        if found is None or len(found) != self.batch:
            return self._validity_carried_on(flat)
        if not self._fed.virtual:
            return found
        order = torch.arange(found.shape[1], device=found.device)
        return found & (order >= self._fed.virtual)

    def _validity_carried_on(self, flat: Tensor | None) -> Tensor | None:
        """Return the (B, P) validity of earlier passes with this one's; None if nobody tells."""
        before = self._fed.valid
        now = torch.ones(self.batch, self._length, dtype=torch.bool, device=self.device)
        is_of_pass = flat is not None and flat.shape == now.shape
        if flat is not None and is_of_pass:
            now = flat.bool()
        if before is None and not is_of_pass:
            return None
        if before is None and not self._offset:
            return now
        if before is None:  # nothing was padding so far
            before = now.new_ones(self.batch, self._offset)
        return torch.cat([before.to(self.device), now], 1)

    def _answers_what_was_told(self) -> bool:
        """Say whether a decoder was made to read the prompt, one column to the right, as BART's."""
        told, own = self._heard, self._tokens
        if told is None or told.tokens is None or told.valid is None or own is None:
            return False
        if own.shape != told.tokens.shape or own.shape[1] < 2:
            return False
        valid = told.valid[:, 1:].to(own.device)
        return torch.equal(own[:, 1:][valid], told.tokens[:, :-1].to(own.device)[valid])

    def _told_validity(self, valid: Tensor, past: Tensor | None) -> Tensor:
        """Return the (B, P) validity from what was told of the prompt; what is written is valid."""
        if past is not None:
            valid = torch.cat([past.to(valid.device), valid], 1)
        valid = valid.to(self.device).repeat_interleave(self.each, 0)
        valid = nn.functional.pad(valid, (self._fed.virtual, 0), value=False)
        total = self._offset + self._length
        missing = max(0, total - valid.shape[1])
        return nn.functional.pad(valid, (0, missing), value=True)[:, :total]

    def _documents(self, given: Mapping[str, Any]) -> Tensor | None:
        """Return where documents packed into one row begin, (B, P) bool; None if rows are whole."""
        begins = self._packed(given)
        before = self._fed.begins
        if begins is None and before is None:
            return None
        if begins is None:
            begins = torch.zeros(self.batch, self._length, dtype=torch.bool, device=self.device)
        if before is None:
            before = torch.zeros(self.batch, self._offset, dtype=torch.bool, device=self.device)
        return torch.cat([before, begins], 1)

    def _packed(self, given: Mapping[str, Any]) -> Tensor | None:
        """Return where position ids start again, or where the mask cuts off all that was before."""
        ids = given.get("position_ids")
        if isinstance(ids, Tensor) and ids.dim() == 2 and self._length > 1:
            fits = len(ids) in (1, self.batch) and ids.shape[1] == self._length
            return packed_by_positions(ids, self._valid_now()) if fits else None
        if self._offset:
            return None
        begins = packed_by_mask(given.get("attention_mask"), self._length)
        return None if begins is None else begins.to(self.device).expand(self.batch, -1)

    def _valid_now(self) -> Tensor:
        if self._valid is None or self.frames is not None:
            return torch.ones(self.batch, self._length, dtype=torch.bool, device=self.device)
        return self._valid[:, -self._length :]

    def validity(self, batch: int, num_tokens: int) -> Tensor:
        """Return which of this pass's tokens are no padding, (B, T) bool.

        Raises:
            EditError: Some are padding, and the site has another number of tokens.
        """
        valid = self._fitting(self._valid, batch, num_tokens)
        if valid is None:
            return torch.ones(batch, num_tokens, dtype=torch.bool, device=self.device)
        return valid[:, -num_tokens:].bool()

    def positions(self, batch: int, num_tokens: int) -> Tensor:
        """Return positions counted from each row's first valid token, (B, T) int64.

        Raises:
            EditError: They cannot be known.
        """
        self._require_columns()
        return self._positions(batch, num_tokens)

    def _positions(self, batch: int, num_tokens: int) -> Tensor:
        if self.frames is not None or not self._length:
            valid = self.validity(batch, num_tokens)
            return (valid.long().cumsum(-1) - 1).clamp_min(0)
        counted = self._fitting(self._counted(), batch, num_tokens)
        if counted is None:
            return torch.arange(num_tokens, device=self.device).expand(batch, -1)
        return counted[:, -num_tokens:]

    def _counted(self) -> Tensor:
        """Return the (B, P) positions of all tokens so far."""
        total = self._offset + self._length
        valid = self._valid
        if valid is None:
            valid = torch.ones(self.batch, total, dtype=torch.bool, device=self.device)
        order = valid.long().cumsum(-1) - 1
        if self._begins_BP is not None:
            order = order - torch.where(self._begins_BP, order, 0).cummax(-1).values
        return order.clamp_min(0)

    def prompt_length(self, batch: int, num_tokens: int) -> Tensor:
        """Return the number of valid tokens of each row's prompt, (B,) int64."""
        self._require_phase()
        self._require_columns()
        if not self._length or self.frames is not None:
            return self._positions(batch, num_tokens).amax(-1) + 1
        counted_BP, width = self._counted(), self._offset + self._ahead
        if width <= counted_BP.shape[1]:
            return counted_BP[:, width - 1] + 1
        # this is a piece of the prompt; what comes of it later is told
        valid = None if self._told is None else self._told.valid
        if valid is None:
            return torch.full((self.batch,), width, device=self.device)
        return valid.to(self.device).sum(-1).repeat_interleave(self.each)[self._chosen]

    def last(self, batch: int, num_tokens: int) -> Tensor:
        """Return a (B, T) bool mask of the prompt's last valid token and of all written ones."""
        valid = self.validity(batch, num_tokens)
        order = torch.arange(num_tokens, device=self.device)
        if num_tokens != self._length:
            return order == torch.where(valid, order, -1).amax(-1, keepdim=True)
        self._require_phase()
        prompt = order < self._ahead
        ends = torch.where(valid & prompt, order, -1).amax(-1, keepdim=True)
        if self._ahead > self._length:  # a piece of the prompt that does not end it
            ends = torch.full_like(ends, -1)
        return (order == ends) | (valid & ~prompt)

    def rows(self, batch: int, num_tokens: int) -> Rows:
        """Return the (B, T) rows of this pass, the same object for all sites of one shape.

        Positions that cannot be known are -1.
        """
        if (batch, num_tokens) not in self._rows:
            self._rows[batch, num_tokens] = self._new_rows(batch, num_tokens)
        return self._rows[batch, num_tokens]

    def _new_rows(self, batch: int, num_tokens: int) -> Rows:
        valid = self.validity(batch, num_tokens)
        tokens, told = self._tokens, self._told
        if tokens is None and told is not None and told.tokens is not None and self._length:
            missing = num_tokens - told.tokens.shape[1]
            tokens = nn.functional.pad(told.tokens.to(self.device), (missing, 0), value=-1)
        if tokens is None or tokens.shape != valid.shape:
            tokens = torch.full(valid.shape, -1, device=self.device)
        sample = torch.arange(batch, device=self.device)[:, None].expand_as(valid)
        positions = self._positions(batch, num_tokens)
        if not self._known:
            positions = torch.full_like(positions, -1)
        return Rows(valid, sample, positions, tokens)

    def _fitting(self, counted_BP: Tensor | None, batch: int, num_tokens: int) -> Tensor | None:
        """Return what is known of the (B, P) tokens if it speaks of a site's, or of its last.

        None stands for: nothing is padding, and the site's tokens count from 0.
        """
        if counted_BP is None:
            return None
        if self.frames is not None:
            lengths = self.frames(counted_BP.long().sum(-1))
            return torch.arange(num_tokens, device=self.device) < lengths[:, None]
        if len(counted_BP) == batch and num_tokens in (1, self._length):
            return counted_BP
        if self._valid is None or bool(self._valid.all()):
            return None
        raise EditError(
            f"some of the pass's {self.batch} x {self._length} tokens are padding, and a site of "
            f"{batch} x {num_tokens} rows does not tell which of its own are"
        )

    # ---- parts of a pass --------------------------------------------------------------------

    def part(self, rows: slice) -> "ForwardContext":
        """Return what is known of some rows of this pass."""
        own = copy(self)
        index = torch.arange(self.batch, device=self.device)[rows]
        own.batch = len(index)
        for name in ("_valid", "_tokens", "_begins_BP"):
            value = getattr(self, name)
            setattr(own, name, None if value is None else value[rows])
        own._rows, own.each, own._chosen = {}, 1, rows
        own.memory = self.memory.setdefault((rows.start, rows.stop, rows.step), {})
        return own

    def whole(self) -> "ForwardContext":
        """Return what is known of a site with one vector for each row, which is no token's."""
        own = copy(self)
        step = 0 if self._reason else max(0, self._length - self._ahead)
        own._length, own._offset, own._ahead = 1, step, 1 - step
        own._valid = own._begins_BP = own._tokens = own._told = None
        own._rows, own._known, own.frames = {}, True, None
        return own


def _ids_among(given: Mapping[str, Any], args: tuple[Any, ...]) -> Tensor | None:
    """Return the (B, T) token ids among a stack's arguments, None if there are none."""
    named = (given.get(name) for name in ("input_ids", "decoder_input_ids"))
    ids = next((v for v in (*named, *args[:1]) if v is not None), None)
    is_ids = isinstance(ids, Tensor) and ids.dim() == 2 and not ids.is_floating_point()
    return ids if is_ids else None
