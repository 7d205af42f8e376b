"""Whether edited versions may share a run of a network: seen on a few tokens, never assumed.

What is shared rests on three things: attention looks back only, a cache holds all that a block
knows of earlier tokens, and rows of a batch do not meet. Each was broken by some network, so each
is tried: versions that share must give what each gives alone.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from actkit.core.edits.edit import Edit, scale
from actkit.core.edits.where import Where
from actkit.core.sites.discover import REFUSALS

if TYPE_CHECKING:
    from actkit.core.run.runner import Runner

LENGTH = 6
"""Tokens of the longer of the two rows."""

Sweep = Callable[["Runner", list[list[int]], list[list[Edit]], Callable[[Tensor], Tensor]], Tensor]


def agrees(model: "Runner", padded: bool, shared: Sweep, alone: Sweep) -> bool:
    """Say whether versions that share a run give what each gives alone.

    Args:
        model: A decoder whose blocks are known.
        padded: Whether rows of unequal length are meant.
        shared: Runs versions from the middle of one run; returns a metric (V, B).
        alone: Runs each version whole.
    """
    words = int(model.module.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    pad = getattr(getattr(model.module, "config", None), "pad_token_id", None)
    known = [i for i in range(1, words) if i != pad] or [0]
    row = [known[(5 + 7 * i) % len(known)] for i in range(LENGTH)]
    rows = [row, row[::-1][: LENGTH - 2 * padded]]
    versions = _versions(model)
    with torch.random.fork_rng(devices=[]):
        try:
            found = shared(model, rows, versions, _number)
            wanted = alone(model, rows, versions, _number)
        except REFUSALS:
            return False
    effect = (wanted - wanted[:1]).abs()
    error = (found - wanted).abs()
    fine = model_dtype(model) in (torch.float32, torch.float64)
    bound = (1e-3 if fine else 5e-2) * effect.amax(0)
    return bool((effect[1:].amax(0) > 0).all() and (error <= bound).all())


def _versions(model: "Runner") -> list[list[Edit]]:
    """Return the bare version, and edits of early and late blocks at early and late tokens."""
    sites = [s.name for s in model.sites("resid_pre.*")]
    at = {"early": Where(tokens=1), "late": Where(tokens=-2)}
    blocks = sorted({0, len(sites) // 2, len(sites) - 1})
    late = [[scale(sites[b], -1.0, at["late"])] for b in blocks]
    return [[], *late, [scale(sites[blocks[-1]], -1.0, at["early"])]]


def _number(logits: Tensor) -> Tensor:
    """Return one number in which every position and every word counts, (n,)."""
    gen = torch.Generator().manual_seed(0)
    weights = torch.randn(logits.shape[1:], generator=gen).to(logits.device)
    return (logits.float() * weights).sum((1, 2))


def model_dtype(model: "Runner") -> torch.dtype:
    """Return the dtype of a network's weights."""
    return next(
        (p.dtype for p in model.module.parameters() if p.is_floating_point()), torch.float32
    )
