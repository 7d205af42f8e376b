"""What patching queries or keys does to attention patterns, exactly.

Shapes: B pairs, H query heads, G key heads, T queries, S keys.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from actkit.core.edits.edit import swap
from actkit.core.errors import InputError
from actkit.core.run.recording import Recording
from actkit.trace._gradients import sides
from actkit.trace._parts import Parts
from actkit.trace._task import Trial

Effect = Callable[[Tensor], Tensor]
NEEDED = ("q", "k", "attn_scores", "attn_probs")
"""The points of the patched side that the exact patterns start from."""


def pattern_effects(
    trial: Trial, parts: Parts, direction: str, base: Recording, layers: Sequence[int]
) -> list[Effect]:
    """Return for each block the map from dM/dA (B, H, T, S) to (B, T, heads, 1) effects.

    One run in which every block has queries of the one side and keys of the other tells the
    scores between them, whatever the network does to them (rotation, norms, soft cap, mask).

    Args:
        trial: The task on a network.
        parts: Queries or keys.
        direction: "denoise" or "noise".
        base: What `NEEDED` names in every block, of the side that is patched.
        layers: The blocks.

    Raises:
        InputError: Single units of queries or keys are asked.
    """
    if "unit" in parts.axes:
        raise InputError(f"the QK fix patches whole queries and keys, got {parts}")
    point, other = parts.point, "k" if parts.point == "q" else "q"
    side, onto = sides(direction)
    source = trial.source(side, [f"{point}.{i}" for i in layers])
    edits = [swap(f"{point}.{i}", source) for i in layers]
    edits += [swap(f"{other}.{i}", base) for i in layers]
    names = [f"{p}.{i}" for i in layers for p in ("attn_scores", "attn_probs")]
    mixed = trial.record(onto, names, edits)
    num_heads = source[f"{point}.{layers[0]}"].shape[2]

    def effect(layer: int) -> Effect:
        old, new = base[f"attn_probs.{layer}"].detach(), mixed[f"attn_probs.{layer}"]
        if not torch.allclose(old.sum(-1), torch.ones(()).to(old), atol=1e-3):
            raise InputError("the QK fix needs patterns that sum to one; this network has sinks")
        if point == "q" or "position" not in parts.axes:
            return lambda g: _by_head(((new - old) * g).sum(-1), num_heads)
        scores = base[f"attn_scores.{layer}"].detach(), mixed[f"attn_scores.{layer}"]
        return lambda g: _by_head(_one_key_each(*scores, g), num_heads)

    return [effect(layer) for layer in layers]


def _one_key_each(scores: Tensor, new_scores: Tensor, g: Tensor) -> Tensor:
    """Return sum_t (A' - A) dM/dA for each key patched alone, (B, H, S); all are (B, H, T, S).

    A key's new share is its new score against the sum over the other keys; the others divide the
    rest as before. The largest key's others are summed apart, since 1 - A would cancel.
    """
    s, new, g = (x.double() for x in (scores, new_scores, g))
    p = s.softmax(-1)
    row, log_sum = (p * g).sum(-1, keepdim=True), s.logsumexp(-1, keepdim=True)
    most = p.argmax(-1, keepdim=True)
    rest = s.scatter(-1, most, torch.finfo(torch.float32).min)
    log_others = log_sum + (1 - p).log().scatter(-1, most, 0.0)
    log_others = log_others.scatter(-1, most, rest.logsumexp(-1, keepdim=True))
    mean = ((row - p * g) / (1 - p)).scatter(-1, most, (rest.softmax(-1) * g).sum(-1, keepdim=True))
    share = (new - log_others).sigmoid()
    return (share * g + (1 - share) * mean - row).sum(-2)


def _by_head(effect_BHT: Tensor, num_heads: int) -> Tensor:
    """Return (B, T, heads, 1); where one key head serves several query heads, their sum."""
    batch, _, length = effect_BHT.shape
    grouped = effect_BHT.reshape(batch, num_heads, -1, length).sum(2)
    return grouped.transpose(1, 2)[..., None]
