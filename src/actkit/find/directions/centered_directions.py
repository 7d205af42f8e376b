"""Find directions of concepts that do not depend on the context, from prompts of all combinations.

Shapes: G contexts, E concepts, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.recording import last_tokens
from actkit.find._base import Finder
from actkit.model import Model

SITES = ("resid_mid.*", "resid_post.*")


@dataclass(frozen=True, eq=False)
class CenteredDirections:
    """Unit directions of each concept at each site.

    Attributes:
        vectors: (E, D) of each site.
        concepts: Their names, in order.
    """

    vectors: Mapping[str, Tensor]
    concepts: Sequence[str]

    def of(self, concept: str) -> dict[str, Tensor]:
        """Return the (D,) direction of one concept at each site."""
        if concept not in self.concepts:
            raise InputError(f"concepts are {', '.join(self.concepts)}, got {concept!r}")
        row = list(self.concepts).index(concept)
        return {site: vectors_ED[row] for site, vectors_ED in self.vectors.items()}

    def nearest(self, site: str, acts_GED: Tensor) -> Tensor:
        """Return the nearest concept of (G, E, D) activations, (G, E), by cosine.

        Each context's mean over its E activations is taken away first, so a context must come
        with all of its concepts.
        """
        within_GED = acts_GED - acts_GED.mean(1, keepdim=True)
        return (within_GED @ self.vectors[site].to(within_GED).mT).argmax(-1)


@method(source="Wang et al. 2025, arXiv:2510.11328", interface=Finder)
def centered_directions(
    model: Model,
    prompts: Sequence[Sequence[Any]],
    concepts: Sequence[str],
    sites: str | Sequence[str] = SITES,
) -> CenteredDirections:
    """Return a direction for each concept, from every context under every concept.

    As in the paper: of the residual stream after attention and after the MLP at the last token
    the context's mean over concepts is taken away, then the mean over contexts is taken for each
    concept, less its mean over concepts, and normalised. So what differs between contexts, such
    as the topic, has no part in a direction; in a full table of prompts the first step alone
    changes nothing but rounding, and it is what makes a new context comparable in `nearest`.

    Args:
        model: The network.
        prompts: G contexts, each written under the E concepts in the same order.
        concepts: Names of the E concepts.
        sites: Where.

    Raises:
        InputError: The prompts are no table of at least two concepts.

    Example:
        >>> import torch
        >>> acts_GED = torch.tensor([[[9.0, 1.0], [9.0, -1.0]], [[4.0, 5.0], [4.0, 3.0]]])
        >>> directions(acts_GED)
        tensor([[ 0.,  1.],
                [ 0., -1.]])
        >>> import actkit as ak
        >>> model = ak.open(torch.nn.Sequential(torch.nn.Identity()))
        >>> prompts = [[[[9.0, 1.0]], [[9.0, -1.0]]], [[[4.0, 5.0]], [[4.0, 3.0]]]]
        >>> tensors = [torch.tensor(row) for row in prompts]
        >>> centered_directions(model, tensors, ["up", "down"], "0:out").vectors["0:out"]
        tensor([[ 0.,  1.],
                [ 0., -1.]])
    """
    counts = sorted({len(row) for row in prompts})
    if counts != [len(concepts)]:
        raise InputError(
            f"each context needs a prompt for each of {len(concepts)} concepts, got {counts} "
            f"prompts in {len(prompts)} contexts"
        )
    found: dict[str, list[Tensor]] = {}
    for row in track(list(prompts), "reading contexts"):
        rec = model.run(list(row), record=sites)
        for site in rec:
            found.setdefault(site, []).append(last_tokens(rec[site].float(), rec.rows_of(site)))
    vectors = {site: directions(torch.stack(acts)) for site, acts in found.items()}
    return CenteredDirections(vectors, tuple(concepts))


def directions(acts_GED: Tensor) -> Tensor:
    """Return the (E, D) unit directions of activations of G contexts under E concepts.

    Raises:
        InputError: There are less than two concepts or no context, numbers are not finite, or a
            concept has no direction, as where all concepts are alike.
    """
    if acts_GED.dim() != 3 or acts_GED.shape[1] < 2 or not acts_GED.numel():
        raise InputError(
            f"directions need (contexts, concepts >= 2, width), got {tuple(acts_GED.shape)}"
        )
    if bad := int((~acts_GED.isfinite()).sum()):
        raise InputError(f"activations must be finite, got {bad} that are not")
    within_GED = acts_GED - acts_GED.mean(1, keepdim=True)
    mean_ED = within_GED.mean(0)
    centered_ED = mean_ED - mean_ED.mean(0)
    norm_E1 = centered_ED.norm(dim=-1, keepdim=True)
    if (flat := norm_E1[:, 0] <= 1e-6 * acts_GED.abs().amax()).any():
        raise InputError(f"concepts must differ, {flat.nonzero()[:, 0].tolist()} have no direction")
    unit_ED: Tensor = centered_ED / norm_E1
    return unit_ED
