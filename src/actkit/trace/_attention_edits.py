"""Edits that force heads to attend to given positions.

Shapes: B rows, T queries, H heads, S keys.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import torch

from actkit.core.edits.edit import Edit, set
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.model import Model


def set_attention(
    model: Model,
    inputs: Any,
    heads: Collection[tuple[int, int]],
    keys: Sequence[Sequence[int]],
    query: int = -1,
) -> list[Edit]:
    """Return edits that spread all attention from one token evenly over given tokens.

    Args:
        model: The network.
        inputs: The prompts that will be run, B rows; `trial.clean`.
        heads: (layer, head) of each head that is forced.
        keys: For each row the positions to attend to, counted from its first valid token;
            negative ones from its end.
        query: The position that attends; by default each row's last.

    Raises:
        InputError: A row has no keys, or keys outside the prompt or after the query.

    Example:
        >>> from actkit.worlds import reader
        >>> m, tokens = Model(reader(at=(1, 1))), torch.tensor([[3, 1, 2]])
        >>> edits = set_attention(m, tokens, [(1, 1)], [[1, 2]])
        >>> m.run(tokens, record="attn_probs.1", edits=edits)["attn_probs.1"][0, 1, -1]
        tensor([0.0000, 0.5000, 0.5000])
    """
    batch = model.encode(inputs)
    if batch.tokens is None or len(keys) != len(batch.tokens):
        raise InputError(f"need keys for each row of tokens, got keys of {len(keys)} rows")
    valid = torch.ones_like(batch.tokens).bool() if batch.valid is None else batch.valid
    row_BTHS = torch.zeros(len(keys), 1, 1, valid.shape[1], device=valid.device)
    for b, own in enumerate(keys):
        present = valid[b].nonzero()[:, 0]
        length = len(present)
        at = query % length if -length <= query < length else -1
        wanted = [k % length if -length <= k < length else length for k in own]
        if not wanted or max(wanted) > at:
            raise InputError(
                f"keys must be positions up to the query {query} of {length} tokens and not none, "
                f"got {list(own)} in row {b}"
            )
        row_BTHS[b, 0, 0, present[sorted({*wanted})]] = 1 / len({*wanted})
    by_layer: dict[int, list[int]] = defaultdict(list)
    for layer, head in sorted({*heads}):
        by_layer[layer].append(head)
    return [
        set(f"attn_probs.{layer}", row_BTHS, Where(tokens=query, heads=own))
        for layer, own in by_layer.items()
    ]
