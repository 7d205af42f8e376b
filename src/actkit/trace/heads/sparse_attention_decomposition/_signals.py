"""The few singular terms that carry an attention score, and what upstream parts add to them.

Shapes: K head width, E = D + 1 of the extended stream, S terms kept, C parts.
"""

from dataclasses import dataclass

from torch import Tensor

from actkit.core.errors import InputError
from actkit.trace.heads.sparse_attention_decomposition._query_key import QueryKey

ROUNDING = 1e-5
"""Share of a score that the sum of its terms may miss."""


@dataclass(frozen=True, eq=False)
class Signal:
    """The few terms by which a head's query finds a key.

    Attributes:
        layer: Of the head.
        head: Its index.
        query: Position that attends.
        key: Position that is attended to.
        score: The head's score of the pair.
        terms_K: What each singular term adds to it, the largest first.
        u_ES: The query side of the terms that carry it.
        s_S: Their singular values.
        v_ES: Their key side.
    """

    layer: int
    head: int
    query: int
    key: int
    score: float
    terms_K: Tensor
    u_ES: Tensor
    s_S: Tensor
    v_ES: Tensor

    @property
    def num_terms(self) -> int:
        """Return how many terms carry the score."""
        return len(self.s_S)


def decompose(
    form: QueryKey, head: int, query: int, key: int, layer: int = 0, share: float = 1.0
) -> Signal:
    """Return the terms of a score, and the fewest of them whose sum reaches a share of it.

    Args:
        form: Of the layer.
        head: Which head.
        query: Position that attends.
        key: Position that is attended to.
        layer: Index of the layer, to be told.
        share: How much of the score must be reached, in (0, 1].

    Raises:
        InputError: The score is not positive, so that no terms need carry it.
    """
    if not 0 < share <= 1:
        raise InputError(f"a share must be in (0, 1], got {share}")
    u_EK, s_K, v_EK = form.svd(head, query - key)
    terms_K = (form.x_TE[query] @ u_EK) * s_K * (form.x_TE[key] @ v_EK)
    score = float(terms_K.sum())
    if score <= 0:
        raise InputError(f"a signal needs a positive score, got {score:.3g} of {query} on {key}")
    order_K = terms_K.argsort(descending=True)
    reached = terms_K[order_K].cumsum(0) >= score * min(share, 1 - ROUNDING)
    own = order_K[: int(reached.nonzero()[0]) + 1]
    return Signal(layer, head, query, key, score, terms_K[order_K], u_EK[:, own], s_K[own],
                  v_EK[:, own])  # fmt: skip


def contributions(signal: Signal, writes_CE: Tensor, x_E: Tensor, side: str = "q") -> Tensor:
    """Return what (C, E) parts of one side add to a signal, through its terms alone.

    Args:
        signal: The signal.
        writes_CE: Parts of the extended stream on that side; where they are all, their
            contributions add up to the sum of the signal's terms.
        x_E: The whole extended stream on the other side.
        side: "q" or "k".
    """
    own_ES, other_ES = (signal.u_ES, signal.v_ES) if side == "q" else (signal.v_ES, signal.u_ES)
    return (writes_CE @ own_ES) @ (signal.s_S * (x_E @ other_ES))
