"""Attention scores and probabilities, computed beside the kernel that the model is configured for.

transformers asks its registry for the attention function by the name in the module's config. While
a socket stands on a module, and on that module only, the name is `NAME`; what it leads to calls
the configured kernel with unchanged arguments, so outputs keep every bit, and lets the sockets of
the thread that calls compute scores and probabilities from the same queries and keys. What was
read is held against what the kernel returned, once for each kernel and kind of mask. An edit needs
the explicit form: then, and only in that layer, the output is recomputed from the edited
probabilities. With gradients the output keeps its bits too, and its gradient goes through the
probabilities that were recorded.

Shapes: B batch, H heads, G key-value heads, T queries, S keys, K head width.
"""

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from actkit.core.compat import kernel_reads
from actkit.core.errors import SiteError
from actkit.core.run.attachments import Close, ThreadBound, attachments

Kernel = Callable[..., tuple[Tensor, Tensor | None]]
NAME = "actkit"
"""What the registry of transformers calls the function that stands for a kernel."""


class AttentionSocket:
    """What one run reads and edits at one attention module while it is open."""

    def __init__(
        self, module: nn.Module, guest: ThreadBound, run: Callable[[list[Any], Tensor], Tensor]
    ) -> None:
        """Plan for one module.

        Args:
            module: The module that calls the kernel.
            guest: Who is asked whether the calling thread is its own.
            run: `run(taps, x)` passes a tensor through taps.
        """
        self.taps: dict[str, Any] = {}
        self.module, self._guest, self._run = module, guest, run

    def open(self) -> None:
        """Stand between the module and its kernel."""
        with _LOCK:
            switch = _SWITCHES.get(self.module)
            if switch is None:
                switch = _SWITCHES[self.module] = _Switch(self.module)
            switch.sockets.append(self)

    def close(self) -> None:
        """Take everything back."""
        with _LOCK:
            switch = _SWITCHES.get(self.module)
            if switch is None or self not in switch.sockets:
                return
            switch.sockets.remove(self)
            if not switch.sockets:
                switch.close()
                del _SWITCHES[self.module]

    @property
    def is_here(self) -> bool:
        """Say whether the calling thread or task is the one that opened it."""
        return self._guest.is_here

    @property
    def edits(self) -> bool:
        """Say whether anything is written."""
        return any(t.edits for taps in self.taps.values() for t in taps)

    def passed(self, side: str, x: Tensor) -> Tensor:
        """Return scores or probabilities as they flow on."""
        return self._run(self.taps[side], x) if side in self.taps else x


class _Switch:
    """Leads one module to `_attend` while sockets stand on it."""

    def __init__(self, module: nn.Module) -> None:
        """Lend the module a copy of its config with another kernel's name."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        self.sockets: list[AttentionSocket] = []
        configured: Any = module.config
        self._config = configured
        self._module = module
        if not len(_SWITCHES):
            ALL_ATTENTION_FUNCTIONS[NAME] = _attend
        own = copy.copy(self._config)
        own._attn_implementation_internal = NAME
        self._give_back: Close = attachments(module).lend("config", own)

    def close(self) -> None:
        """Give the module its config back."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        self._give_back()
        if len(_SWITCHES) == 1:
            ALL_ATTENTION_FUNCTIONS.pop(NAME)

    @property
    def name(self) -> str:
        """Return the name of the configured kernel."""
        return str(self._config._attn_implementation_internal or "eager")

    def kernel(self) -> Kernel:
        """Return the function that the module would have called."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        if self.name == "eager" and getattr(self._module, "reorder_and_upcast_attn", False):
            return _upcast
        files = (sys.modules[c.__module__] for c in type(self._module).__mro__)
        eager = next(
            f.eager_attention_forward for f in files if hasattr(f, "eager_attention_forward")
        )
        kernel: Kernel = ALL_ATTENTION_FUNCTIONS.get_interface(self.name, eager)
        return kernel


_LOCK = RLock()
_SWITCHES: WeakKeyDictionary[nn.Module, _Switch] = WeakKeyDictionary()
_PROVEN: WeakKeyDictionary[nn.Module, set[tuple[Any, ...]]] = WeakKeyDictionary()
"""For each module the kernels and kinds of masks of which the explicit form was seen to hold."""


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """Stand in for the kernel: (B, H, T, K) queries, (B, G, S, K) keys and values."""
    switch = _SWITCHES[module]
    kernel = switch.kernel()
    sockets = [s for s in tuple(switch.sockets) if s.is_here]
    if not sockets:
        return kernel(module, query, key, value, attention_mask, **settings)
    read = _heeded(kernel, settings)
    sizes = (len(query), query.shape[2], key.shape[2])
    mask = _of_blocks(attention_mask, sizes, query.device)
    scores_BHTS = given = attention_scores(module, query, key, mask, read)
    probs_BHTS = bare_BHTS = attention_probs(scores_BHTS, settings.get("s_aux")).to(query.dtype)
    call = partial(kernel, module, query, key, value, attention_mask, **settings)
    case = _case(switch, probs_BHTS, attention_mask)
    returned = None if case in _PROVEN.get(module, ()) else call()
    if returned is not None:
        _prove(module, case, (probs_BHTS, value, returned[0]), mask, settings)
    scores_BHTS = _passed(sockets, "scores", scores_BHTS)
    if scores_BHTS is not given:
        probs_BHTS = attention_probs(scores_BHTS, settings.get("s_aux")).to(query.dtype)
    probs_BHTS = _passed(sockets, "probs", probs_BHTS)
    if probs_BHTS is not bare_BHTS and any(s.edits for s in sockets):
        return grouped(probs_BHTS, value).transpose(1, 2).contiguous(), probs_BHTS
    output, weights = call() if returned is None else returned
    if torch.is_grad_enabled():
        explicit = grouped(probs_BHTS, value).transpose(1, 2)
        output = with_gradient_of(explicit, output)
    return output, weights


def _heeded(kernel: Kernel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without those that a kernel takes and does not read."""
    unread = [k for k in ("softcap", "position_bias") if not kernel_reads(kernel, k)]
    return {k: v for k, v in settings.items() if k not in unread}


def _passed(sockets: Sequence[AttentionSocket], point: str, x: Tensor) -> Tensor:
    """Return scores or probabilities as the sockets, one after the other, pass them on."""
    for socket in sockets:
        x = socket.passed(point, x)
    return x


def _case(switch: _Switch, probs_BHTS: Tensor, mask: Any) -> tuple[Any, ...]:
    """Return what tells one kind of call of a kernel from another."""
    kind = (mask.dim(), mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
    return switch.name, kind, probs_BHTS.shape[2] > 1


def _prove(
    module: nn.Module,
    case: tuple[Any, ...],
    flowed: tuple[Tensor, Tensor, Tensor],
    mask: Any,
    settings: dict[str, Any],
) -> None:
    """Hold the explicit form against what the kernel returned.

    Raises:
        SiteError: The kernel computes something else.
    """
    if module.training and settings.get("dropout", 0.0) > 0:
        return  # what the kernel dropped is not known
    probs_BHTS, value, output = (x.detach() for x in flowed)
    error = (grouped(probs_BHTS, value).transpose(1, 2) - output).float().flatten(2).norm(dim=-1)
    size = output.float().flatten(2).norm(dim=-1)
    # kernels differ in rows of padding, which see nothing
    wrong = (error > _TOLERANCE[output.dtype] * size) & _sees_something(mask, error)
    if wrong.any():
        raise SiteError(
            f"attention cannot be read beside the kernel {case[0]!r}, which returned something "
            "else than the probabilities of its queries, keys and mask give: open the network "
            "with attn_implementation='eager'"
        )
    _PROVEN.setdefault(module, set()).add(case)


_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def _sees_something(mask: Any, like_BT: Tensor) -> Tensor:
    """Return which (B, T) queries see any key at all."""
    if not isinstance(mask, Tensor):
        return torch.ones_like(like_BT, dtype=torch.bool)
    if mask.dim() == 2:
        return mask[:, -like_BT.shape[1] :].bool().expand_as(like_BT)
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return seen.any(-1).any(1).expand_as(like_BT)


def with_gradient_of(explicit: Tensor, output: Tensor) -> Tensor:
    """Return the output's own numbers; their gradient goes through the explicit form."""
    return output.detach() + (explicit - explicit.detach())


def _upcast(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any
) -> tuple[Tensor, Tensor | None]:
    """Call GPT-2's own kernel, which it keeps apart from the registry."""
    output: tuple[Tensor, Tensor | None] = module._upcast_and_reordered_attn(
        query, key, value, mask
    )
    return output


def attention_scores(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    settings: dict[str, Any],
) -> Tensor:
    """Return the softmax's logits (B, H, T, S), at least in float32, the mask included.

    Hidden keys hold the lowest finite number, as in transformers' own explicit form.

    Args:
        module: The attention module.
        query: (B, H, T, K).
        key: (B, G, S, K).
        mask: (B, 1, T, S), bool or to be added; (B, S), which keys are no padding; or None.
        settings: What else the kernel was called with.
    """
    scale = settings.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    wide = torch.promote_types(query.dtype, torch.float32)
    scores: Tensor = grouped(query, key.transpose(-1, -2)).to(wide) * scale
    if (cap := settings.get("softcap")) is not None:
        scores = cap * torch.tanh(scores / cap)
    if (bias := settings.get("position_bias")) is not None:
        scores = scores + bias
    lowest = torch.finfo(query.dtype).min
    if mask is not None and mask.dim() != 2:
        mask = mask[..., : scores.shape[-1]]
        return scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    causal = settings.get("is_causal")
    causal = getattr(module, "is_causal", False) if causal is None else causal
    if causal:
        seen = _seen_by_order(scores, settings.get("sliding_window"))
        scores = scores.masked_fill(~seen, lowest)
    if mask is not None:  # kernels that take lengths are told which keys are no padding
        scores = scores.masked_fill(~mask[:, None, None, -scores.shape[-1] :].bool(), lowest)
    return scores


def _seen_by_order(scores_BHTS: Tensor, window: int | None) -> Tensor:
    """Return which keys a causal query sees, by their order alone, (T, S) bool."""
    num_queries, num_keys = scores_BHTS.shape[-2:]
    key_S = torch.arange(num_keys, device=scores_BHTS.device)
    query_T1 = key_S[num_keys - num_queries :, None]
    seen = key_S <= query_T1
    return seen if window is None else seen & (key_S > query_T1 - window)


def _of_blocks(mask: Any, sizes: tuple[int, int, int], device: torch.device) -> Any:
    """Return the (B, 1, T, S) mask that a block mask of flex attention stands for, or the mask."""
    if not hasattr(mask, "mask_mod"):
        return mask
    from torch.nn.attention.flex_attention import create_mask

    batch, num_queries, num_keys = sizes
    return create_mask(mask.mask_mod, batch, 1, num_queries, num_keys, device=str(device))


def attention_probs(scores_BHTS: Tensor, sinks_H: Tensor | None = None) -> Tensor:
    """Return the softmax over keys; with sinks, one more logit for each head that is dropped."""
    if sinks_H is None:
        return scores_BHTS.softmax(-1)
    sinks = sinks_H.reshape(1, -1, 1, 1).expand(*scores_BHTS.shape[:-1], 1)
    return torch.cat([scores_BHTS, sinks.to(scores_BHTS.dtype)], -1).softmax(-1)[..., :-1]


def grouped(left_BHTx: Tensor, right_BGxy: Tensor) -> Tensor:
    """Multiply per head where G heads on the right serve H on the left, without copying them."""
    batch, heads, length, width = left_BHTx.shape
    groups = right_BGxy.shape[1]
    stacked = left_BHTx.reshape(batch, groups, heads // groups * length, width)
    return (stacked @ right_BGxy).view(batch, heads, length, -1)
