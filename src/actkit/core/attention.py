"""Attention scores and probabilities, computed beside the kernel that the model is configured for.

transformers asks its registry for the attention function by the name in the config. While a
module with taps runs, and only then, the name is this socket's; the socket calls the configured
kernel with unchanged arguments, so outputs keep every bit, and computes scores and probabilities
from the same queries and keys. An edit needs the explicit form: then, and only in that layer, the
output is recomputed from the edited probabilities. With gradients the output keeps its bits too,
and its gradient goes through the probabilities that were recorded.

Shapes: B batch, H heads, G key-value heads, T queries, S keys, K head width.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Kernel = Callable[..., tuple[Tensor, Tensor | None]]


class AttentionSocket:
    """Stands between one attention module and its kernel while it is open."""

    def __init__(
        self,
        module: nn.Module,
        run: Callable[[Any, str, Tensor], Tensor],
        done: Callable[..., None],
    ) -> None:
        """Plan for one module; `run(taps, path, x)` passes a tensor on, `done` may stop the run."""
        self.taps: dict[str, Any] = {}
        self._module, self._run, self._done = module, run, done
        self._name = f"actkit-{id(self)}"
        self._handles: list[RemovableHandle] = []
        self._configured: str | None = None
        self._inside = False

    def open(self) -> None:
        """Register the socket and its doors."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS[self._name] = self._attend
        enter, leave = self._enter, self._leave
        self._handles = [
            self._module.register_forward_pre_hook(enter),
            self._module.register_forward_hook(leave, always_call=True, prepend=True),
            self._module.register_forward_hook(self._done),
        ]

    def close(self) -> None:
        """Take everything back."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        for handle in self._handles:
            handle.remove()
        self._leave()
        if self._name in ALL_ATTENTION_FUNCTIONS:
            ALL_ATTENTION_FUNCTIONS.pop(self._name)

    def _enter(self, *_: Any) -> None:
        config: Any = self._module.config
        self._configured, self._inside = config._attn_implementation_internal, True
        config._attn_implementation_internal = self._name

    def _leave(self, *_: Any) -> None:
        if not self._inside:  # called even where a hook before `_enter` failed
            return
        config: Any = self._module.config
        config._attn_implementation_internal = self._configured
        self._inside = False

    def _kernel(self) -> Kernel:
        """Return the function that the module would have called."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        if self._configured == "eager" and getattr(self._module, "reorder_and_upcast_attn", False):
            return _upcast
        files = (sys.modules[c.__module__] for c in type(self._module).__mro__)
        eager = next(
            f.eager_attention_forward for f in files if hasattr(f, "eager_attention_forward")
        )
        kernel: Kernel = ALL_ATTENTION_FUNCTIONS.get_interface(self._configured or "eager", eager)
        return kernel

    def _attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **settings: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Stand in for the kernel: (B, H, T, K) queries, (B, G, S, K) keys and values."""
        sockets = self._chain()
        with_edits = any(t.edits for s in sockets for taps in s.taps.values() for t in taps)
        scores_BHTS = given = attention_scores(module, query, key, attention_mask, settings)
        for socket in sockets:
            scores_BHTS = socket._passed("scores", scores_BHTS)
        edited = with_edits and scores_BHTS is not given
        probs_BHTS = given = attention_probs(scores_BHTS, settings.get("s_aux")).to(query.dtype)
        for socket in sockets:
            probs_BHTS = socket._passed("probs", probs_BHTS)
        if edited or (with_edits and probs_BHTS is not given):
            return grouped(probs_BHTS, value).transpose(1, 2).contiguous(), probs_BHTS
        kernel = sockets[0]._kernel()
        output, weights = kernel(module, query, key, value, attention_mask, **settings)
        if torch.is_grad_enabled():
            explicit = grouped(probs_BHTS, value).transpose(1, 2)
            output = with_gradient_of(explicit, output)
        return output, weights

    def _chain(self) -> list["AttentionSocket"]:
        """Return the sockets that are open on this module, the first opened first."""
        outer = getattr(self._kernel(), "__self__", None)
        return [*(outer._chain() if isinstance(outer, AttentionSocket) else []), self]

    def _passed(self, side: str, x: Tensor) -> Tensor:
        return self._run(self.taps[side], self._name, x) if side in self.taps else x


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
    if mask is not None and mask.dtype == torch.bool:
        return scores.masked_fill(~mask[..., : scores.shape[-1]], lowest)
    if mask is not None:
        return scores + mask[..., : scores.shape[-1]]
    causal = settings.get("is_causal")
    causal = getattr(module, "is_causal", False) if causal is None else causal
    num_queries, num_keys = scores.shape[-2:]
    if causal and num_queries > 1:
        seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(~seen.tril(num_keys - num_queries), lowest)
    return scores


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
