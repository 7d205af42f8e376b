"""Leave out void layers: end each token at its last active one, or do not run them at all.

Shapes: B batch, T tokens, D width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, final

import torch
from torch import Tensor, nn

from actkit.catalog import method
from actkit.core.edits.edit import Edit, apply
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.shrink._base import Skipper

ENTRY, BLOCKS = "resid_pre.0", "resid_post.*"


class _Walk:
    """Goes up the blocks with the tokens' states; holds each state after its last active block."""

    def __init__(self, alpha: float, entry_BTD: Tensor) -> None:
        self.held_BTD = entry_BTD
        self._alpha, self._length_BT = alpha, _lengths(entry_BTD)
        self._high_BT = torch.full_like(self._length_BT, -inf)
        self._low_BT = torch.full_like(self._length_BT, inf)

    def step(self, state_BTD: Tensor) -> Tensor:
        """Take the next block's output; return for which tokens it was active, (B, T) bool."""
        length_BT = _lengths(state_BTD)
        increase_BT = length_BT - self._length_BT
        range_BT = (self._high_BT - self._low_BT).clamp_min(0)  # -inf before the first block
        active_BT = increase_BT >= self._alpha * range_BT
        self.held_BTD = torch.where(active_BT[..., None], state_BTD, self.held_BTD)
        self._high_BT = self._high_BT.maximum(increase_BT)
        self._low_BT = self._low_BT.minimum(increase_BT)
        self._length_BT = length_BT
        return active_BT


def _lengths(states_BTD: Tensor) -> Tensor:
    wide = torch.promote_types(states_BTD.dtype, torch.float32)
    lengths: Tensor = torch.linalg.vector_norm(states_BTD.detach(), dim=-1, dtype=wide)
    return lengths


class _Passed(nn.Module):
    """Stands in for a block: passes the stream on."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self._layer = layer

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the stream; put one number of each token into the block's part of the cache.

        Networks ask the cache of their first layer how long the text is.

        Raises:
            InputError: The block keeps another state than keys and values.
        """
        from transformers.cache_utils import Cache, LinearAttentionCacheLayerMixin

        one_B1T1 = hidden_states[:, None, :, :1]
        for given in (*args, *kwargs.values()):
            if isinstance(given, Cache):
                own = given.layers[self._layer : self._layer + 1]
                if own and isinstance(own[0], LinearAttentionCacheLayerMixin):
                    raise InputError(
                        f"a skipped block must cache keys and values, block {self._layer} keeps "
                        f"{type(own[0]).__name__}: run with use_cache=False"
                    )
                given.update(one_B1T1, one_B1T1, self._layer)
        return hidden_states


@contextmanager
def without_layers(model: Model, layers: Sequence[int]) -> Iterator[None]:
    """Run a model without some of its blocks, cached generation too; they come back at the end.

    Args:
        model: A language model.
        layers: Numbers of the blocks.

    Raises:
        InputError: The blocks are one module that is called repeatedly.
        SiteError: There is no such block.
    """
    sites = [model.sites(f"resid_post.{layer}")[0] for layer in layers]
    if repeated := [site for site in sites if site.place.call is not None]:
        raise InputError(
            f"a block to skip must be a module of its own, got {repeated[0].where} for {layers}"
        )
    paths = [site.place.path for site in sites]
    with model.replaced({p: _Passed(n) for p, n in zip(paths, layers, strict=True)}):
        yield


@method(source="Shemiranifar 2025, arXiv:2505.14467, section 3")
@final
@dataclass(frozen=True)
class SkipVoids(Skipper):
    """Use a language model without the layers that are void for its tokens, in one of two ways.

    A layer is a void for a token if it adds less to the length of the token's state than `alpha`
    times the range of what the layers before it added.

    `final_state` is the paper's experiment: all layers run, and what the final norm reads is a
    token's state after its last active layer (what enters the first block, if none is). It saves
    no time.

    `skipping` differs from the paper, whose rule judges a layer by what it returned: a full run
    over prompts decides beforehand, for all tokens alike. Layers that were active for too few of
    the prompts' tokens (first tokens not counted) are then not run at all, neither for prompts
    nor for what is written.

    Args:
        alpha: Share of the range that a layer must reach to be active (>= 0).
        least_share: Share of the prompts' tokens, in [0, 1], for which a layer must be active
            to be run.

    Raises:
        InputError: A setting is out of range.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> net = GPT2Model(GPT2Config(vocab_size=5, n_embd=4, n_layer=2, n_head=1)).eval()
        >>> _ = [p.data.zero_() for p in net.parameters()]
        >>> _ = net.wte.weight.data.fill_(3.0)
        >>> _ = net.h[1].mlp.c_proj.bias.data.fill_(-1.0)  # brings lengths from 6 to 4
        >>> SkipVoids().voids(Model(net), [[1, 2, 3]])
        (1,)
    """

    alpha: float = 0.8
    least_share: float = 0.5

    def __post_init__(self) -> None:
        """Check the settings."""
        if not (isfinite(self.alpha) and self.alpha >= 0 and 0 <= self.least_share <= 1):
            raise InputError(
                "alpha must be finite and at least 0, and least_share lie in [0, 1], got "
                f"{self.alpha} and {self.least_share}"
            )

    def final_state(self, model: Model) -> list[Edit]:
        """Return edits under which the model ends each token at its last active layer."""
        walks: list[_Walk] = []

        def begin(entry_BTD: Tensor) -> Tensor:
            walks[:] = [_Walk(self.alpha, entry_BTD)]
            return entry_BTD

        def follow(state_BTD: Tensor) -> Tensor:
            walks[0].step(state_BTD)
            return state_BTD

        def end(state_BTD: Tensor) -> Tensor:
            walks[0].step(state_BTD)
            return walks.pop().held_BTD

        *blocks, last = [site.name for site in model.sites(BLOCKS)]
        return [apply(ENTRY, begin), *(apply(name, follow) for name in blocks), apply(last, end)]

    def voids(self, model: Model, prompts: Any) -> tuple[int, ...]:
        """Return the layers that are active for too few of the prompts' tokens.

        Args:
            model: A language model.
            prompts: As in `Model.run`.

        Raises:
            InputError: The prompts have no tokens but their first ones.
        """
        rec = model.run(prompts, record=[ENTRY, BLOCKS])
        counted_BT = rec.rows.valid & (rec.rows.position > 0)
        if not counted_BT.any():
            raise InputError(
                f"prompts must have at least 2 tokens, got shape {tuple(counted_BT.shape)}"
            )
        entry_BTD, *states = rec.values()
        walk = _Walk(self.alpha, entry_BTD)
        shares = [walk.step(x)[counted_BT].float().mean() for x in states]
        return tuple(layer for layer, share in enumerate(shares) if share < self.least_share)

    @contextmanager
    def skipping(self, model: Model, prompts: Any) -> Iterator[tuple[int, ...]]:
        """Run the model without the layers that are void for the prompts; yield which they are.

        Args:
            model: A language model.
            prompts: As in `Model.run`.

        Raises:
            InputError: As in `voids` and `without_layers`.
        """
        voids = self.voids(model, prompts)
        with without_layers(model, voids):
            yield voids
