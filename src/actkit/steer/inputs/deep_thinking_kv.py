"""Refine the key-value cache of demonstrations by forward passes, and answer queries from it.

Shapes: B queries, L tokens of the demonstrations, T tokens of a query, H heads, K width of a head.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.compat import cache_keywords, output_cache
from actkit.core.errors import InputError, NotFittedError
from actkit.core.progress import track
from actkit.model import Model
from actkit.steer._base import CacheSteerer


@method(source="Yang et al. 2023, arXiv:2305.13016, section 3")
@dataclass
class DeepThinkingKV(CacheSteerer):
    """Iterative forward tuning: the demonstrations' keys and values, refined with momentum.

    Each step reads the demonstrations again with the memory as their past. What their keys and
    values became, less the memory, is the gradient g: m = g + momentum m, memory += rate m.
    Queries see the memory and not the demonstrations. As in the paper, but for `positions`.

    Args:
        steps: Number of forward passes; the first only fills the memory.
        rate: The share of a velocity that is added.
        momentum: The share of a velocity that is kept.
        positions: Where the demonstrations stand when they are read again: "after" the memory, as
            in the authors' code, whose networks rotate no keys; or at the "same" places, since
            rotated keys of different places differ by their rotation.

    Attributes:
        memory_: Keys and values (1, H, L, K) of each layer in turn.
        tokens_: (L,), the demonstrations.
        step_: The step that the memory is of, from 1.
        scores_: What `score` returned after each step.

    Example:
        >>> import actkit as ak
        >>> m = ak.open("smollm2")
        >>> kv = DeepThinkingKV(steps=2).fit(m, "France: Paris. Italy: Rome.")
        >>> m.generate(kv.prompts(m, [" Japan:"]), cache=kv.cache(1), max_new_tokens=1)
        [' Tokyo']
    """

    steps: int = 15
    rate: float = 0.01
    momentum: float = 0.9
    positions: Literal["same", "after"] = "same"
    memory_: list[Tensor] = field(init=False, repr=False, default_factory=list)
    tokens_: Tensor = field(init=False, repr=False)
    step_: int = field(init=False, repr=False, default=0)
    scores_: list[float] = field(init=False, repr=False, default_factory=list)
    _dtype: torch.dtype = field(init=False, repr=False)

    def fit(
        self,
        model: Model,
        demonstrations: Any,
        score: "Callable[[DeepThinkingKV], float] | None" = None,
    ) -> Self:
        """Read the demonstrations `steps` times.

        Args:
            model: A decoder that caches keys and values.
            demonstrations: One text or row of token ids, from which queries go on.
            score: Says how good the memory is, on validation queries for example; the memory of
                the best step is kept, of equal ones the earliest. The last one if None.

        Raises:
            InputError: There is more than one row, or no room for it in the context; the network
                caches something else; or the memory did not stay finite.
        """
        tokens_1L = self._checked(model, demonstrations)
        self.tokens_, self.scores_ = tokens_1L[0], []
        velocity: list[Tensor] | None = None
        for step in track(range(1, self.steps + 1), "thinking"):
            new = self._read(model, tokens_1L, None if step == 1 else self.cache())
            if step == 1:
                self.memory_ = new
            else:
                self.memory_, velocity = self.refined(self.memory_, new, velocity)
            self.step_ = step
            self.scores_ += [] if score is None else [score(self)]
            if score is None or self.scores_[-1] > max(self.scores_[:-1], default=-torch.inf):
                best = self.memory_, step
        self.memory_, self.step_ = best
        return self

    def refined(
        self, memory: list[Tensor], new: list[Tensor], velocity: list[Tensor] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the memory and the velocity after one step; there is no velocity before."""
        m = [n - old for n, old in zip(new, memory, strict=True)]
        if velocity is not None:
            m = [g + self.momentum * v for g, v in zip(m, velocity, strict=True)]
        moved = [old + self.rate * v for old, v in zip(memory, m, strict=True)]
        if not all(x.isfinite().all() for x in moved):
            raise InputError(f"the memory must stay finite: lower the rate, got {self.rate}")
        return moved, m

    def cache(self, batch_size: int = 1) -> Any:
        """Return a new `transformers.DynamicCache` that holds the memory in each row."""
        from transformers import DynamicCache

        if not self.step_:
            raise NotFittedError("DeepThinkingKV must be fitted before it gives a cache")
        cache: Any = DynamicCache()
        rows = [x.to(self._dtype).expand(batch_size, -1, -1, -1) for x in self.memory_]
        for layer, (keys, values) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
            cache.update(keys, values, layer)
        return cache

    def prompts(self, model: Model, queries: Sequence[str]) -> dict[str, Tensor]:
        """Return B queries behind the demonstrations, as `generate` needs them beside a cache.

        The network does not read what the cache holds. Padding stands between the two.
        """
        batch = model.encode.text(queries, special=False).kwargs
        demos_BL = self.tokens_.expand(len(queries), -1)
        return {
            "input_ids": torch.cat([demos_BL, batch["input_ids"]], 1),
            "attention_mask": torch.cat([torch.ones_like(demos_BL), batch["attention_mask"]], 1),
        }

    def logits(self, model: Model, queries: Sequence[str], **run: Any) -> Tensor:
        """Return the (B, T, V) logits of queries that see the memory; -1 is each one's last token.

        Args:
            model: The network.
            queries: What goes on from the demonstrations.
            run: Passed to `Model.run`, such as `edits`.
        """
        given, length = self.prompts(model, queries), len(self.tokens_)
        mask_BP = given["attention_mask"]
        places_BT = (mask_BP.cumsum(-1) - 1)[:, length:]
        ids_BT, cache = given["input_ids"][:, length:], self.cache(len(queries))
        inputs = _inputs(model, ids_BT, mask_BP, places_BT, cache)
        return model.run(inputs, logits=True, **run).logits

    def _checked(self, model: Model, demonstrations: Any) -> Tensor:
        """Return the (1, L) tokens of the demonstrations."""
        if self.steps < 1 or self.positions not in ("same", "after"):
            raise InputError(
                "there must be at least 1 step, at positions 'same' or 'after', "
                f"got {self.steps} at {self.positions!r}"
            )
        tokens = model.encode(demonstrations).tokens
        if tokens is None or len(tokens) != 1:
            rows = "none" if tokens is None else len(tokens)
            raise InputError(f"demonstrations must be one row of tokens, got {rows}")
        room, length = model.encode.context_length(), tokens.shape[1]
        if room is not None and 2 * length > room:
            raise InputError(f"demonstrations must fit the context of {room} twice, got {length}")
        return tokens

    def _read(self, model: Model, tokens_1L: Tensor, past: Any) -> list[Tensor]:
        """Return the keys and values of the demonstrations, read with a past."""
        length = tokens_1L.shape[1]
        start = 0 if past is None else length
        mask_1P = tokens_1L.new_ones(1, start + length)
        first = start if self.positions == "after" else 0
        places_1L = torch.arange(first, first + length, device=tokens_1L.device)[None]
        inputs = _inputs(model, tokens_1L, mask_1P, places_1L, past)
        cache = output_cache(model.run(inputs).output)
        layers = getattr(cache, "layers", ())
        held: list[Any] = [getattr(n, name, None) for n in layers for name in ("keys", "values")]
        sizes = [tuple(x.shape) if isinstance(x, Tensor) else () for x in held]
        if not held or any(s[2:3] != (start + length,) for s in sizes):
            raise InputError(
                f"the network must cache keys and values of all {start + length} tokens, "
                f"got {type(cache).__name__} of shapes {sorted(set(sizes))}"
            )
        self._dtype = held[0].dtype
        wide = torch.promote_types(self._dtype, torch.float32)
        return [x[:, :, -length:].to(wide) for x in held]


def _inputs(
    model: Model, ids_BT: Tensor, mask_BP: Tensor, places_BT: Tensor, past: Any
) -> dict[str, Any]:
    """Return the arguments of a pass that goes on from a past; positions where they are heard."""
    given = {"input_ids": ids_BT, "attention_mask": mask_BP, **cache_keywords(model.module, past)}
    heard = "position_ids" in inspect.signature(model.module.forward).parameters
    return {**given, "use_cache": True} | ({"position_ids": places_BT} if heard else {})
