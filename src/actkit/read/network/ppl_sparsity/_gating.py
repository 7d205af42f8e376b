"""The perplexity of a decoder whose MLP neurons are gated, and the gate that costs a given share.

Shapes: B batch, T tokens, S tokens before the last, N rows, H neurons, V vocabulary.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import isfinite, log1p
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from actkit.anatomy.mlp_weights import every_site
from actkit.core.edits.edit import apply
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.inputs import Batch
from actkit.core.run.recording import Rows
from actkit.core.run.site_rows import flat_rows
from actkit.core.sites.site import Site
from actkit.core.sweep.stream import batches
from actkit.model import Model

Gate = Callable[[str, Tensor, Tensor | None], Tensor]
"""From a site, its (B, T, H) activations and, of gated MLPs, what the up projection returned to a
mask of the activations that are set to zero."""
Read = Callable[[Site, Tensor], None]
"""Takes a site and its (N, H) activations, without those of padding and of first tokens."""

_CLOSE = 0.1  # a perplexity is met up to this share of the growth that is asked for
_NUM_TRIES = 8  # noise of few tokens makes more of them useless


@dataclass
class GatedPass:
    """What one pass over the data gives.

    Attributes:
        loss: Sum over predicted tokens, in nats.
        num_tokens: How many they are.
        num_kept: For each site the number of activations that are not zero.
        num_seen: For each site the number of activations.
    """

    loss: float = 0.0
    num_tokens: int = 0
    num_kept: Counter[str] = field(default_factory=Counter)
    num_seen: Counter[str] = field(default_factory=Counter)

    @property
    def mean(self) -> float:
        """Return the loss per token, in nats."""
        return self.loss / self.num_tokens

    @property
    def shares(self) -> dict[str, float]:
        """Return for each site the share of activations that are not zero."""
        return {name: self.num_kept[name] / seen for name, seen in self.num_seen.items()}


class Decoder:
    """A decoder, the sites of its MLPs' neurons, and the data that it reads again and again.

    The first token of a text is counted nowhere: neither its neurons, which are unlike those of
    all other tokens in many language models, nor what is predicted from it alone.

    Attributes:
        model: The network.
        sites: The neurons' sites by name.
    """

    def __init__(
        self, model: Model, data: Any, pattern: str, batch_size: int, ups: bool = False
    ) -> None:
        """Look at the sites; nothing is run yet.

        Args:
            model: The network.
            data: Texts or lists of token ids, that can be iterated over several times.
            pattern: Of the sites, `mlp_hidden.*`.
            batch_size: How many texts to run at once.
            ups: Whether gates see what the up projections return.

        Raises:
            SiteError: A block has no such site, or the network returns no logits.
            InputError: The data can be read only once, or the sites are others.
        """
        if isinstance(data, Iterator):
            raise InputError(f"data are read several times, but a {type(data).__name__} only once")
        self.model, self._data, self._size = model, data, batch_size
        self.sites = {s.name: s for s in every_site(model, pattern)}
        if wrong := [name for name in self.sites if not name.startswith("mlp_hidden.")]:
            raise InputError(f"neurons are gated at mlp_hidden.*, got {wrong[0]}")
        (self._logits,) = model.sites("logits")
        self._ups = {name: site for name in self.sites if ups and (site := self._up(name))}

    def run(self, gate: Gate | None = None, read: Read | None = None) -> GatedPass:
        """Read all data once; with a gate the activations that it masks are zero.

        Raises:
            InputError: The data are no texts of three tokens, or the loss is not finite.
        """
        held: dict[str, Tensor] = {}
        edits = [apply(n, partial(_gated, gate, n, held)) for n in self.sites] if gate else []
        sites = [*self._ups.values(), *self.sites.values(), self._logits]
        result = GatedPass()
        whole = isinstance(self._data, list | tuple)
        groups = batches(self._data, self._size)
        for group in track(list(groups) if whole else groups, "reading perplexity"):
            batch = self.model.encode(group)
            self.model.stream(batch, sites, partial(self._take, result, batch, held, read), edits)
        if not (result.num_tokens and isfinite(result.loss)):
            raise InputError(
                "perplexity needs a finite loss on texts of at least 3 tokens, "
                f"got {result.loss} nats on {result.num_tokens} predicted tokens"
            )
        return result

    def _up(self, name: str) -> Site | None:
        """Return the site of the up projection, None if the MLP has no gate."""
        gates = self.model.sites(name.replace("mlp_hidden", "mlp_gate"), refused=True)
        gated = any(not site.refused for site in gates)
        return self.model.sites(name.replace("mlp_hidden", "mlp_pre"))[0] if gated else None

    def _take(
        self,
        result: GatedPass,
        batch: Batch,
        held: dict[str, Tensor],
        read: Read | None,
        *seen: Any,
    ) -> None:
        """Take what flows at a site: an up projection's output, neurons, or the logits."""
        site, x, context = seen
        if site is self._logits:
            _add_loss(result, x, batch)
        elif site.name in self.sites:
            acts_NH, rows = flat_rows(site, x, context)
            acts_NH = acts_NH[rows.position > 0]
            result.num_kept[site.name] += int(acts_NH.count_nonzero())
            result.num_seen[site.name] += acts_NH.numel()
            if read is not None:
                read(site, acts_NH)
        else:
            held[site.name] = x


def _gated(gate: Gate, name: str, held: dict[str, Tensor], x: Tensor) -> Tensor:
    return x.masked_fill_(gate(name, x, held.get(name.replace("mlp_hidden", "mlp_pre"))), 0)


def _add_loss(result: GatedPass, logits_BTV: Tensor, batch: Batch) -> None:
    """Add the loss of each token that has two before it."""
    if batch.tokens is None or logits_BTV.shape[:2] != batch.tokens.shape:
        shape = None if batch.tokens is None else tuple(batch.tokens.shape)
        raise InputError(
            "perplexity needs a decoder with logits for each token, got logits of shape "
            f"{tuple(logits_BTV.shape)} for tokens of shape {shape}"
        )
    valid_BT = torch.ones_like(batch.tokens).bool() if batch.valid is None else batch.valid
    position_BT = Rows.of(valid_BT).position
    counted_BS = valid_BT[:, :-1] & valid_BT[:, 1:] & (position_BT[:, :-1] > 0)
    for logits_TV, token_T, counted_S in zip(logits_BTV, batch.tokens, counted_BS, strict=True):
        loss_N = cross_entropy(
            logits_TV[:-1][counted_S].float(), token_T[1:][counted_S], reduction="none"
        )
        result.loss += float(loss_N.double().sum())
        result.num_tokens += len(loss_N)


def matched(
    run: Callable[[float], GatedPass], dense: GatedPass, p: float, start: float, limit: float
) -> tuple[float, dict[float, GatedPass]]:
    """Return the strength of a gate at which perplexity grows by the share p, and all passes.

    Strengths are doubled from `start` on until perplexity has grown too much, then Brent's method
    closes in, until the growth is right to a tenth of itself. The limit is returned if even there
    perplexity grows by less.

    Args:
        run: Reads the data under a gate of a strength > 0.
        dense: The pass without a gate.
        p: Growth that is asked for (> 0).
        start: First strength.
        limit: Largest strength.
    """
    from scipy.optimize import brentq

    if not p > 0:
        raise InputError(f"perplexity must be allowed to grow by a share p > 0, got {p}")
    passes = {0.0: dense}

    def excess(strength: float) -> float:
        if strength not in passes:
            passes[strength] = run(strength)
        over = passes[strength].mean - dense.mean - log1p(p)
        return 0.0 if abs(over) <= _CLOSE * log1p(p) else over

    low, high = 0.0, start
    while excess(high) < 0 and high < limit:
        low, high = high, min(2 * high, limit)
    if excess(high) < 0:
        return high, passes
    if excess(high) > 0:
        brentq(excess, low, high, xtol=1e-6, rtol=1e-3, maxiter=_NUM_TRIES, disp=False)
    near = min(passes, key=lambda s: abs(passes[s].mean - dense.mean - log1p(p)))
    return near, passes
