"""Hold parts of a network's heads while it trains: perfect, absent, or as another run has them.

Shapes: B sequences, T tokens, S keys, H heads.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit, apply, scale, set, swap
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.core.run.recording import Recording
from actkit.core.sites.site_names import layer_of
from actkit.model import Model
from actkit.trace._base import Intervention
from actkit.trace.training.optogenetics._clamps import CopyHead, match_pattern, previous_pattern
from actkit.trace.training.optogenetics._heads_alone import (
    HeadsAlone,
    heads_alone,
    induction_strength,
)
from actkit.worlds.two_pairs import Episodes, TwoPairs

__all__ = [
    "Episodes",
    "HeadsAlone",
    "Optogenetics",
    "TwoPairs",
    "grafted",
    "heads_alone",
    "induction_strength",
    "match_pattern",
    "previous_pattern",
]


@method(source="Singh et al. 2024, arXiv:2404.07129")
@dataclass(frozen=True, eq=False)
class Optogenetics(Intervention):
    """Clamps of attention heads for one batch, as edits to use inside a training loop.

    Take `with model.edited(clamps): loss(model.module(token_BT)).backward()` in every step. No
    gradient flows through what a clamp puts in, so the weights behind it rest. As in the paper,
    on any network whose attention can be edited.

    Args:
        token_BT: (B, T) what stands at each position; equal numbers are the same exemplar.

    Raises:
        InputError: The tokens are no integers (B, T), or a clamp asks for what no head can do.

    Example:
        >>> from actkit.worlds import toy
        >>> token_BT = torch.tensor([[2, 1, 3, 0, 2]])
        >>> model, clamps = Model(toy(4)), Optogenetics(token_BT)
        >>> rec = model.run(token_BT, "attn_probs.1", [clamps.match(1, 0)])
        >>> rec["attn_probs.1"][0, 0, -1]  # 2 was followed by the token at position 1
        tensor([0., 1., 0., 0., 0.])
    """

    token_BT: Tensor

    def __post_init__(self) -> None:
        """Check the tokens."""
        shape = tuple(self.token_BT.shape)
        if len(shape) != 2 or not self.token_BT.numel() or self.token_BT.is_floating_point():
            raise InputError(f"tokens must be integers (B, T), got {self.token_BT.dtype} {shape}")

    def attend(self, layer: int, head: int, pattern: Tensor, tokens: Any = "all") -> Edit:
        """Hold a head's attention at a (T, S) or (B, T, S) pattern, at the given tokens."""
        batch, length = self.token_BT.shape
        if pattern.shape not in ((length, length), (batch, length, length)):
            raise InputError(
                f"a pattern must be ({length}, {length}) or ({batch}, {length}, {length}), "
                f"got {tuple(pattern.shape)}"
            )
        held_BT1S = pattern.detach().reshape(-1, length, 1, length)
        off = (held_BT1S.sum(-1) - 1).abs().max()
        ahead = pattern.detach().triu(1).abs().max()
        if not off < 1e-5 or ahead > 0 or held_BT1S.min() < 0:
            raise InputError(
                "rows of a pattern must be shares of what is visible and sum to 1, got a sum "
                f"{float(off):.3g} off, {float(ahead):.3g} ahead and {float(pattern.min()):.3g} "
                f"at least, in shape {tuple(pattern.shape)}"
            )
        return set(f"attn_probs.{layer}", held_BT1S, Where(tokens=tokens, heads=head))

    def previous_token(
        self, layer: int, head: int, strength: float = 1.0, tokens: Any = "all"
    ) -> Edit:
        """Make a head a previous-token head; at some tokens only, for example the labels."""
        return self.attend(layer, head, previous_pattern(self.token_BT.shape[1], strength), tokens)

    def match(self, layer: int, head: int, strength: float = 1.0, tokens: Any = "all") -> Edit:
        """Make a head attend to what followed the same token before."""
        return self.attend(layer, head, match_pattern(self.token_BT, strength), tokens)

    def no_previous(self, layer: int, heads: int | Sequence[int] | None = None) -> Edit:
        """Forbid attention to the previous token; the rest is normalised, and learns."""

        def masked(scores_BTHS: Tensor) -> Tensor:
            size = scores_BTHS.shape[1], scores_BTHS.shape[3]
            before_TS = torch.ones(size, device=scores_BTHS.device).tril(-1).triu(-1)
            lowest = torch.finfo(scores_BTHS.dtype).min
            return scores_BTHS.masked_fill(before_TS.bool()[:, None], lowest)

        return apply(f"attn_scores.{layer}", masked, Where(heads=heads))

    def ablate(
        self, heads: Sequence[tuple[int, int]], patterns: Recording | None = None
    ) -> list[Edit]:
        """Remove the outputs of heads.

        Args:
            heads: Which, as (layer, head); none is no edit at all.
            patterns: A recording of `attn_probs` sites of these sequences: blocks after the
                first head attend as it says, so that only what flows through values is lost.
        """
        gone = [scale(f"z.{layer}", 0.0, Where(heads=head)) for layer, head in heads]
        if patterns is None or not heads:
            return gone
        first = min(layer for layer, _ in heads)
        later = [name for name in patterns if layer_of(name) > first]
        return [*gone, *(swap(name, patterns) for name in later)]

    def hold(
        self, site: str, value: Tensor | Callable[[Tensor], Tensor], where: Where | None = None
    ) -> Edit:
        """Hold any site, such as q, k, v or z, at a value or at a function of what is there."""
        if isinstance(value, Tensor):
            return set(site, value.detach(), where)
        return apply(site, lambda x: value(x.detach()).detach(), where)

    def copy(self, layer: int, head: int, labels: Sequence[int], gain: float = 1.0) -> list[Edit]:
        """Let the logits be `gain` times a head's attention to each label, and nothing else.

        The attention is still learnt: gradients reach it.
        """
        is_label_BT = torch.isin(self.token_BT, self.token_BT.new_tensor(list(labels)))
        label_BT, key = self.token_BT.masked_fill(~is_label_BT, -1), f"copy {layer}.{head}"
        watch, write = (CopyHead(label_BT, gain, key=key, watch=w) for w in (True, False))
        return [Edit(f"attn_probs.{layer}", watch, Where(heads=head)), Edit("logits", write)]


def grafted(model: Model, other: Model, layers: Sequence[int]) -> AbstractContextManager[None]:
    """Let a network have some blocks of another checkpoint of itself, for a while.

    Args:
        model: The network that takes.
        other: The one that gives; its blocks are used, not copied.
        layers: Which blocks, for example the early or the late ones.

    Raises:
        SiteError: One of the two has no such block.
    """
    paths = [[m.sites(f"resid_post.{i}")[0].place.path for m in (model, other)] for i in layers]
    return model.replaced({own: other.module.get_submodule(its) for own, its in paths})
