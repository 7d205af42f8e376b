"""Move one class of states onto another: mean and covariance, by the optimal map between normals.

Shapes: N sources, M targets, B batch, T tokens, D width, K components.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.recording import Recording
from actkit.model import Model
from actkit.steer._base import ContrastSteerer, Strength
from actkit.steer._examples import Examples
from actkit.steer._states import by_layer, chosen_layers, states
from actkit.steer.maps.gaussian_ot._low_rank import LowRankMap, moments, power

_LATER = Where(tokens=slice(1, None))


@method(source="Nanfack et al. 2026, arXiv:2603.04355")
@dataclass
class GaussianOT(ContrastSteerer):
    """Transport the last token's states of one side of examples onto those of the other.

    Both sides are taken as normal in the space of their first components, with T the optimal map
    from one to the other; what lies outside of that space stays as it is. It acts on all tokens
    but the first, whose massive activation is like no last token's: with it the loss on prose
    rises twice as much.

    With requests to refuse as the positive side and `toward="negative"` it takes away what a
    network knows of harm. It is offered for that as an audit: `localisation` tells how much of a
    safeguard hangs on each single layer.

    As in the paper, but for the first token; how much covariances are shrunk is our choice.

    Args:
        layers: Blocks after which the map acts; one at half of the depth if None, and the paper
            takes one or two at 40 to 60 %.
        num_components: K; at most one less than there are examples, and the width.
        shrinkage: Share of each covariance that is replaced by as much variance the same in all
            directions, in [0, 1].
        toward: The side that states are moved to.

    Attributes:
        maps_: The map of each layer at strength 1.

    Example:
        >>> import actkit as ak
        >>> m = ak.open("smollm2")
        >>> pairs = [("I love it", "I hate it"), ("So good", "So bad"), ("A joy", "A bore")]
        >>> ot = GaussianOT(layers=15, num_components=2).fit(m, pairs)
        >>> [(edit.site, tuple(edit.operation.read.shape)) for edit in ot.edits(0.5)]
        [('resid_post.15', (2, 576))]
    """

    layers: int | Sequence[int] | None = None
    num_components: int = 8
    shrinkage: float = 0.3
    toward: Literal["positive", "negative"] = "positive"
    maps_: dict[int, LowRankMap] = field(init=False, repr=False, default_factory=dict)
    grid: ClassVar[tuple[float, ...]] = (0.25, 0.5, 0.75, 1.0)

    def _contrast(self, model: Model, examples: Examples) -> None:
        if self.toward not in ("positive", "negative"):
            raise InputError(f"toward must be positive or negative, got {self.toward!r}")
        sides = [examples.negative, examples.positive]
        sides = sides if self.toward == "positive" else sides[::-1]
        sources, targets = (by_layer(states(model, side, "resid_post.*")) for side in sides)
        self.maps_ = {
            layer: transport(source_ND, targets[layer], self.num_components, self.shrinkage)
            for layer, source_ND in sources.items()
        }

    def _act(self, strength: Strength) -> list[Edit]:
        layers = chosen_layers(self.layers, self.maps_, depth=0.5)
        maps = {n: replace(self.maps_[n], strength=strength) for n in layers}
        return [Edit(f"resid_post.{n}", own, _LATER) for n, own in maps.items()]

    def localisation(
        self,
        model: Model,
        source: Any,
        target: Any,
        safeguard: Callable[[Recording], Tensor],
        record: str | Sequence[str] = (),
        layers: Sequence[int] | None = None,
    ) -> dict[int, float]:
        """Return how much of a safeguard the map at each layer alone removes.

        An audit: a safeguard that one layer's edit takes away is no deeper than that layer.

        Args:
            model: The network.
            source: Held-out inputs that the safeguard is for.
            target: Held-out inputs that it is not for.
            safeguard: Takes a recording with logits and returns (B,) scores, higher where the
                safeguard acts: log-odds of a refusal, or states along a probe's direction.
            record: Sites that the safeguard reads.
            layers: Which to audit; all if None.

        Returns:
            For each layer the share of the difference of mean scores between source and target
            that is gone; 1 is all of it.

        Raises:
            InputError: The safeguard does not tell the two apart.
        """

        def mean(inputs: Any, edits: Sequence[Edit] = ()) -> float:
            return float(safeguard(model.run(inputs, record, edits, logits=True)).mean())

        acting, resting = mean(source), mean(target)
        if not acting > resting:
            raise InputError(
                "a safeguard must score the source above the target, "
                f"got means {acting:.3g} and {resting:.3g}"
            )
        found = {}
        for layer in track(layers or sorted(self.maps_), "auditing layers"):
            left = mean(source, self.at(layer).edits(1.0))
            found[layer] = (acting - left) / (acting - resting)
        return found


def transport(
    source_ND: Tensor, target_MD: Tensor, num_components: int, shrinkage: float
) -> LowRankMap:
    """Return the map of x to x + U (T(z) - z), with z = U^T x and U the shared components.

    Raises:
        InputError: There are too few rows for as many components, or states are not finite.
    """
    both = torch.cat([source_ND, target_MD]).double()
    if lost := int((~both.isfinite()).sum()):
        raise InputError(f"states must be finite, got {lost} NaN or infinite in {len(both)} rows")
    most = min(len(source_ND), len(target_MD)) - 1
    if not 1 <= num_components <= min(most, both.shape[1]):
        raise InputError(
            f"components must be 1 to {min(most, both.shape[1])}, fewer than rows on each side, "
            f"got {num_components} for shapes {tuple(source_ND.shape)} and {tuple(target_MD.shape)}"
        )
    U_KD = torch.linalg.svd(both - both.mean(0), full_matrices=False).Vh[:num_components]
    (m0_K, S0_KK), (m1_K, S1_KK) = (
        moments(side.double() @ U_KD.mT, shrinkage) for side in (source_ND, target_MD)
    )
    A_KK = bures(S0_KK, S1_KK)
    write_KD = (A_KK - torch.eye(num_components).to(A_KK)) @ U_KD
    parts = (U_KD, write_KD, m0_K @ U_KD, (m1_K - m0_K) @ U_KD)
    return LowRankMap(*(part.to(source_ND).contiguous() for part in parts))


def bures(S0_KK: Tensor, S1_KK: Tensor) -> Tensor:
    """Return A = S0^-1/2 (S0^1/2 S1 S0^1/2)^1/2 S0^-1/2, which takes covariance S0 to S1."""
    root, inverse = power(S0_KK, 0.5), power(S0_KK, -0.5)
    return inverse @ power(root @ S1_KK @ root, 0.5) @ inverse
