"""What the methods share: states of examples, and vectors that are added.

Shapes: N examples, B batch, T tokens, D width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from actkit.core.edits.edit import Edit, add
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.recording import Rows, last_tokens
from actkit.core.sites.site_names import layer_of
from actkit.core.sweep.stream import batches
from actkit.model import Model

Pool = Literal["last", "mean"]


def states(
    model: Model,
    inputs: Sequence[Any],
    sites: str | Sequence[str],
    pool: Pool = "last",
    edits: Sequence[Edit] = (),
    batch_size: int = 8,
) -> dict[str, Tensor]:
    """Return one (N, D) float32 state of each input at each site, in the order of the inputs.

    At sites with heads it is (N, H, K).

    Args:
        model: The network.
        inputs: Texts, chats, or whatever else one input is.
        sites: Sites or patterns.
        pool: "last", the last token of each input; "mean", over its tokens but the first, whose
            massive activation would hide all others.
        edits: That act meanwhile.
        batch_size: How many inputs to run at once.
    """
    parts: dict[str, list[Tensor]] = {}
    for group in track(list(batches(list(inputs), batch_size)), "reading examples"):
        rec = model.run(group, record=sites, edits=edits)
        for name in rec:
            parts.setdefault(name, []).append(_pooled(rec[name], rec.rows_of(name), pool))
    return {name: torch.cat(own) for name, own in parts.items()}


def _pooled(acts_BTD: Tensor, rows: Rows, pool: Pool) -> Tensor:
    acts_BTD, valid_BT = acts_BTD.float(), rows.valid
    if pool == "last":
        return last_tokens(acts_BTD, rows)
    later_BT = valid_BT & (valid_BT.cumsum(-1) > 1)
    counted_BT = torch.where(later_BT.any(-1, keepdim=True), later_BT, valid_BT)
    weight_BT = counted_BT / counted_BT.sum(-1, keepdim=True)
    return torch.einsum("bt...,bt->b...", acts_BTD, weight_BT.to(acts_BTD))


def chosen_layers(
    layers: int | Sequence[int] | None, known: Mapping[int, Any], depth: float = 0.6
) -> list[int]:
    """Return which of the known layers are meant, the one at a share of the depth if None.

    Raises:
        InputError: A layer is unknown; negative ones count from the end.
    """
    ordered = sorted(known)
    if layers is None:
        return [ordered[min(int(depth * len(ordered)), len(ordered) - 1)]]
    asked = [layers] if isinstance(layers, int) else list(layers)
    meant = [layer + len(ordered) if layer < 0 else layer for layer in asked]
    if not meant or (unknown := [n for n in meant if n not in known]):
        missing = unknown if meant else "none"
        raise InputError(f"layers must be among {ordered[0]} to {ordered[-1]}, got {missing}")
    return meant


def additive(
    vectors: Mapping[int, Tensor],
    layers: Sequence[int],
    strength: float | Tensor,
    where: Where | None = None,
    point: str = "resid_post",
) -> list[Edit]:
    """Return edits that add strength * vector at each of the layers."""
    return [add(f"{point}.{n}", vectors[n], strength, where) for n in layers]


def by_layer(values: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """Return what is known of sites `point.n`, or of their aliases, by n.

    Raises:
        SiteError: A name is of no block.
    """
    return {layer_of(name): value for name, value in values.items()}
