"""Gradients of later features by the state of the last token at each layer.

Shapes: N inputs, B batch, T tokens, D width, K sites, J later sites.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from actkit.core.progress import track
from actkit.core.run.recording import Recording, last_tokens
from actkit.model import Model


def pullbacks(
    model: Model, groups: Sequence[Any], sites: Sequence[str], directions_KD: Tensor
) -> list[Tensor]:
    """Return for each site but the last the (J, D) pulled back directions of the later ones.

    With A_k the Jacobian from the last token's state at site k to that at the next, averaged over
    the inputs, row j is A_k^T ... A_(k+j)^T v_(k+j+1): how the feature v^T x of a later site moves
    with the state at site k.

    Args:
        model: The network.
        groups: Batches of inputs.
        sites: In the order in which they run.
        directions_KD: A direction v at each site.
    """
    recordings = [model.run(group, record=sites, grad=True) for group in groups]
    rows_JD = directions_KD[-1:]
    found = []
    for k in track(list(reversed(range(len(sites) - 1))), "pulling back"):
        pulled = [_pulled(rec, sites[k], sites[k + 1], rows_JD) for rec in recordings]
        mean_JD = torch.cat(pulled, 1).mean(1).double()
        found.append(mean_JD)
        rows_JD = torch.cat([directions_KD[k : k + 1], mean_JD])
    return found[::-1]


def _pulled(rec: Recording, site: str, later: str, rows_JD: Tensor) -> Tensor:
    """Return (J, B, D): J^T of each row, from the last token to the last token."""
    end_BD = last_tokens(rec[later], rec.rows_of(later))
    grads = []
    for row_D in rows_JD.to(end_BD):
        (grad_BTD,) = torch.autograd.grad(
            end_BD, rec[site], row_D.expand_as(end_BD), retain_graph=True
        )
        grads.append(last_tokens(grad_BTD, rec.rows_of(site)))
    return torch.stack(grads)
