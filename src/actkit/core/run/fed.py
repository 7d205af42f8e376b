"""What was fed to a stack before: by whom it is told, and on which cache it was fed.

Shapes: B batch, T tokens, D width, P tokens that a cache holds.
"""

from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import ref

from torch import Tensor

from actkit.core.run.caches import caches_among, held, is_empty, states_among


@dataclass(frozen=True, eq=False)
class Told:
    """What is known of a prompt by who feeds it.

    Attributes:
        tokens: (B, T) ids; None if the prompt is of another kind.
        embeds: (B, T, D) embeddings, where they are the prompt.
        valid: (B, T) bool, False on padding; None if nothing is said.
        past: (B, P) validity of tokens that a cache among the arguments holds; None if there is
            no such cache, or nothing is known of it.
        width: Columns of the prompt where it may come in pieces, and what follows is written by
            the network; None where one pass is all.
        rows: Rows of the prompt.
        each: Rows of the network for each row of the prompt: sequences, or beams.
        pieces: The prompt may come in several passes.
        turns: Further prompts may follow on the same cache; otherwise what follows is written.
        writes: The network goes on writing: no single pass is all, whatever is told of its prompt.
        reason: Why phases and positions cannot be known; "" if they can.
    """

    tokens: Tensor | None = None
    embeds: Tensor | None = None
    valid: Tensor | None = None
    past: Tensor | None = None
    width: int | None = None
    rows: int = 0
    each: int = 1
    pieces: bool = False
    turns: bool = False
    writes: bool = False
    reason: str = ""


@dataclass
class Fed:
    """What was fed on one cache.

    Attributes:
        seen: Columns so far; None if others fed it, too.
        valid: (B, seen) bool; None if nothing was padding.
        begins: (B, seen) bool, where documents begin; None where each row is one.
        prompt: Columns up to the end of the latest prompt.
        virtual: The first columns, which are no tokens (of prompt tuning).
        length: What the cache said of itself after the last pass.
        memory: What controllers remember, by their keys.
    """

    seen: int | None = 0
    valid: Tensor | None = None
    begins: Tensor | None = None
    prompt: int = 0
    virtual: int = 0
    length: int | None = None
    memory: dict[Any, dict[Any, Any]] = field(default_factory=dict)


class FedByCache:
    """What was fed on each of the caches that passes handed on, as long as these live."""

    def __init__(self) -> None:
        """Know of no cache."""
        self._caches: list[tuple[Callable[[], Any], Fed]] = []
        self._states: list[tuple[Any, Fed]] = []
        self._stand_in: Fed | None = None

    def find(self, values: Iterable[Any]) -> Fed | None:
        """Return what was fed on a cache among the arguments, None if it is not known."""
        values = list(values)
        for cache in caches_among(values):
            fed = next((fed for own, fed in self._caches if own() is cache), None)
            if fed is not None and not is_empty(cache):
                # where somebody cut or filled it between two passes its columns are not counted
                return fed if held(cache) == fed.length else replace(fed, seen=None)
        states = [fed for state, fed in self._states if any(v is state for v in values)]
        return states[0] if states else copy(self._stand_in)

    def keep(self, caches: Iterable[Any], fed: Fed) -> None:
        """Remember what is fed on some caches."""
        for cache in caches:
            others = [(own, old) for own, old in self._caches if own() not in (None, cache)]
            self._caches = [*others, (_reference(cache), fed)]

    def end(self, output: Any, fed: Fed) -> None:
        """Take note of what a pass returned: a cache may be handed on."""
        self.keep(caches_among(output), fed)
        self._states = [(state, fed) for state in states_among(output)]
        for cache, own in self._caches:
            if own is fed and (found := cache()) is not None:
                fed.length = held(found)

    def beside(self, fed: Fed | None) -> "FedByCache":
        """Return one for passes on copies of a cache, on which `fed` was fed."""
        own = FedByCache()
        own._stand_in = copy(fed)
        return own

    def again(self) -> "FedByCache":
        """Return the same for one more of such passes."""
        return self.beside(self._stand_in)


def _reference(cache: Any) -> Callable[[], Any]:
    try:
        return ref(cache)
    except TypeError:  # some cannot be referred to weakly
        return partial(_itself, cache)


def _itself(value: Any) -> Any:
    return value
