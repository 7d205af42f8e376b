"""Trace what a head attends to through the few singular terms that carry its score.

Shapes: T tokens, L layers, H heads, K head width, D width, E = D + 1, C upstream parts, S terms.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit, add
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.recording import Recording
from actkit.model import Model
from actkit.trace._attribution import RECORDED, written
from actkit.trace._base import Analysis
from actkit.trace.heads.sparse_attention_decomposition._query_key import SIDES, QueryKey, query_key
from actkit.trace.heads.sparse_attention_decomposition._signals import (
    Signal,
    contributions,
    decompose,
)


@dataclass(frozen=True, eq=False)
class SignalEdge:
    """What one part upstream contributes to a signal.

    Attributes:
        sender: "z.3.2" for head 2 of layer 3, "mlp_out.3", or "embeddings".
        signal: The signal of the head that receives it.
        side: Which side of the head receives it, "q" or "k".
        position: Where the sender wrote it.
        contribution: What it adds to the score.
        removal: An edit that takes it off this edge alone: off the query of the one head, or off
            the key, which all heads of a group read.
    """

    sender: str
    signal: Signal
    side: Literal["q", "k"]
    position: int
    contribution: float
    removal: Edit

    def __str__(self) -> str:
        """Return sender, receiver and contribution."""
        to = f"{self.side}.{self.signal.layer}.{self.signal.head}"
        return f"{self.sender}@{self.position} -> {to} {self.contribution:+.3f}"


@method(source="Franco and Crovella 2024, arXiv:2410.00340", interface=Analysis)
def sparse_attention_decomposition(
    model: Model,
    prompt: Any,
    head: tuple[int, int],
    query: int = -1,
    key: int | None = None,
    keep: int = 3,
    depth: int = 2,
) -> list[SignalEdge]:
    """Trace a head's attention upstream and return the edges of a communication graph.

    The score of a pair is x_i^T Omega x_j; of the singular terms (x_i u_k) s_k (v_k x_j) the
    fewest are kept whose sum reaches it. On either side, each part upstream contributes what the
    terms see of it; the largest are kept, and those that are heads are traced in turn at the key
    they attend to most. As in the paper; norm scales are frozen and gains and biases folded in by
    one more coordinate. Beyond it, rotary positions give every distance its own Omega, and heads
    of a group share the key side.

    Args:
        model: A decoder whose scores are bilinear in the stream.
        prompt: One prompt.
        head: Layer and head to start at.
        query: Position that attends.
        key: Position that is attended to; the one of most attention if None.
        keep: How many parts to keep on either side of a signal.
        depth: How many heads one after the other.

    Returns:
        The edges, from the given head upwards; `str` shows one.

    Raises:
        InputError: Several prompts, a pair that is not in the prompt or whose score is not
            positive, or an architecture without such scores.

    Example:
        >>> from actkit.worlds import reader
        >>> m = Model(reader(at=(1, 2)))
        >>> edges = sparse_attention_decomposition(m, torch.tensor([[3, 1, 2]]), (1, 2))
        >>> str(edges[0]), edges[0].signal.num_terms  # it asks for position 0, with strength 100
        ('embeddings@2 -> q.1.2 +100.000', 1)
    """
    if depth < 1 or keep < 1:
        raise InputError(f"depth and keep must be at least 1, got {depth} and {keep}")
    stream = _Stream(model, prompt, head)
    todo, edges = [stream.signal(*head, query, key)], list[SignalEdge]()
    for _ in track(range(depth), "tracing upstream"):
        found = [edge for signal in todo for edge in stream.edges(signal, keep)]
        edges += found
        traced = {(e.signal.layer, e.signal.head, e.signal.query) for e in edges}
        places = {(*_head_of(e.sender), e.position) for e in found if _head_of(e.sender)}
        todo = [signal for place in sorted(places - traced) for signal in stream.fired(*place)]
    return edges


class _Stream:
    """One run, and what every part wrote at every position."""

    def __init__(self, model: Model, prompt: Any, head: tuple[int, int]) -> None:
        layers = [site.depth for site in model.sites("z.*")]
        if head[0] not in layers:
            raise InputError(f"a head lies in layers 0 to {layers[-1]}, got {head}")
        points = (*SIDES, "attn_probs")
        names = [f"{point}.{n}" for point in points for n in layers[: head[0] + 1]]
        self._rec: Recording = model.run(prompt, record=[*RECORDED, *names])
        if self._rec.rows.valid.shape[0] != 1:
            raise InputError(f"need one prompt, got {self._rec.rows.valid.shape[0]}")
        self._model, self._forms = model, dict[int, QueryKey]()
        self.length = self._rec.rows.valid.shape[1]

    def signal(self, layer: int, head: int, query: int, key: int | None = None) -> Signal:
        """Return the signal of a pair."""
        probs_HTT = self._rec[f"attn_probs.{layer}"][0]
        if not (0 <= head < len(probs_HTT) and -self.length <= query < self.length):
            raise InputError(
                f"need a head below {len(probs_HTT)} and a position of {self.length} tokens, "
                f"got head {head} at {query}"
            )
        query %= self.length
        key = int(probs_HTT[head, query].argmax()) if key is None else key
        if not 0 <= key <= query:
            raise InputError(f"a key must be in 0..{query}, got {key}")
        return decompose(self._form(layer), head, query, key, layer)

    def fired(self, layer: int, head: int, query: int) -> list[Signal]:
        """Return the signal of a head at its most attended key, none without a positive score."""
        key = int(self._rec[f"attn_probs.{layer}"][0, head, query].argmax())
        if self._rec[f"attn_scores.{layer}"][0, head, query, key] <= 0:
            return []
        return [self.signal(layer, head, query, key)]

    def edges(self, signal: Signal, keep: int) -> list[SignalEdge]:
        """Return the parts upstream that contribute most to either side."""
        form = self._form(signal.layer)
        found: list[SignalEdge] = []
        sides: tuple[Literal["q", "k"], ...] = ("q", "k")
        for side, here, there in zip(
            sides, (signal.query, signal.key), (signal.key, signal.query), strict=True
        ):
            names, writes_CE = self._upstream(signal.layer, here)
            given_C = contributions(signal, writes_CE, form.x_TE[there], side)
            for i in given_C.argsort(descending=True)[:keep].tolist():
                removal = _removal(signal, form, side, here, writes_CE[i])
                found.append(SignalEdge(names[i], signal, side, here, float(given_C[i]), removal))
        return found

    def _form(self, layer: int) -> QueryKey:
        if layer not in self._forms:
            self._forms[layer] = query_key(self._model, self._rec, layer)
        return self._forms[layer]

    def _upstream(self, layer: int, position: int) -> tuple[list[str], Tensor]:
        """Return the names and (C, E) writes, as the layer's norm scales them, of all before it."""
        parts = written(self._model, self._rec, position)
        num_heads = parts.heads_BLHD.shape[2]
        writes_CD = (
            torch.cat(
                [
                    parts.embed_BD,
                    parts.heads_BLHD[0, :layer].flatten(0, 1),
                    parts.mlps_BLD[0, :layer],
                    parts.biases_LD[:layer],
                ]
            )
            / self._form(layer).scale_T1[position]
        )
        names = ["embeddings"]
        names += [f"z.{n}.{h}" for n in range(layer) for h in range(num_heads)]
        names += [f"{point}.{n}" for point in ("mlp_out", "bias") for n in range(layer)]
        return names, torch.cat([writes_CD, torch.zeros_like(writes_CD[:, :1])], 1)


def _removal(signal: Signal, form: QueryKey, side: str, position: int, write_E: Tensor) -> Edit:
    """Return the edit that takes a part's share of the signal off one query, or off one key."""
    own_ES = signal.u_ES if side == "q" else signal.v_ES
    head = signal.head if side == "q" else form.group(signal.head)
    maps_EK = form.q_HEK[head] if side == "q" else form.k_GEK[head]
    seen_E = own_ES @ (own_ES.mT @ write_E)
    where = Where(tokens=position, heads=head)
    return add(f"{side}.{signal.layer}", -(seen_E @ maps_EK), where=where)


def _head_of(sender: str) -> tuple[int, ...]:
    """Return the layer and head of a sender, nothing if it is no head."""
    return tuple(map(int, sender.split(".")[1:])) if sender.startswith("z.") else ()
