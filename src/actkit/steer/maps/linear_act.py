"""Transport each unit from one side of examples to the other, layer by layer, by affine maps.

Shapes: N sources, M targets, B batch, T tokens, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.controller import Controller
from actkit.core.edits.edit import Edit
from actkit.core.errors import InputError
from actkit.core.run.context import ForwardContext
from actkit.model import Model
from actkit.steer._base import ContrastSteerer, Strength
from actkit.steer._examples import Examples
from actkit.steer.maps._transport import Transport, checked, coupled, joined, pooled, pooled_states

Kind = Literal["linear", "mean", "gaussian"]


@method(source="Rodriguez et al. 2024, arXiv:2410.23054, sections 2 and 3")
@dataclass
class LinearAcT(ContrastSteerer):
    """Activation transport: optimal maps of single units, each estimated under those before it.

    Every example is the mean over its tokens; of texts without the first, whose massive
    activation would hide all others. A map acts on every token, and of images shifts all pixels
    as far as their mean. Strength 0 is off and 1 is the whole way; more goes on beyond it.

    Estimating one layer under the maps of all layers before it takes one pass: the examples of
    the negative side run as one batch, in which each map is learnt from what reaches its site
    and moves it at once. As in the paper; sides of unequal sizes are coupled exactly, where the
    paper takes as many of each, and units that do not vary are only shifted.

    Args:
        sites: Where maps act; the outputs of all norms before attention and MLPs by default.
        kind: "linear", least squares on what the coupling joins; "gaussian", the map between
            two normal distributions; "mean", a shift by the difference of means.
        causal: Whether each map is estimated with those before it in place.
        support: The central share of the source, in (0, 1], in which a map acts, 1 for the span
            that was seen; None for no bound.

    Attributes:
        maps_: The map of each site.

    Example:
        >>> import actkit as ak
        >>> m = ak.open(torch.nn.Sequential(torch.nn.Identity()))
        >>> sides = {"negative": [torch.tensor([[0.0], [1.0], [2.0]])]}
        >>> sides |= {"positive": [torch.tensor([[7.0], [3.0], [5.0]])]}  # 2 z + 3 in another order
        >>> act = LinearAcT(sites="0:out").fit(m, sides)
        >>> m.run(torch.tensor([[1.0]]), edits=act.edits(0.5)).output
        tensor([[3.]])
    """

    sites: str | Sequence[str] = ("attn_in.*", "mlp_in.*")
    kind: Kind = "linear"
    causal: bool = True
    support: float | None = 1.0
    maps_: dict[str, Transport] = field(init=False, repr=False, default_factory=dict)
    grid: ClassVar[tuple[float, ...]] = (0.25, 0.5, 0.75, 1.0)

    def _contrast(self, model: Model, examples: Examples) -> None:
        if self.support is not None and not 0 < self.support <= 1:
            raise InputError(f"the support must be a share in (0, 1], got {self.support}")
        targets, images = pooled_states(model, examples.positive, self.sites)
        maps: dict[str, Transport] = {}

        def learn(site: str, source_ND: Tensor) -> Transport:
            slope_D, bias_D = affine(checked(source_ND, site), targets[site], self.kind)
            low_D, high_D = self._bounds(source_ND)
            maps[site] = Transport(slope_D, bias_D, low_D, high_D, images[site])
            return maps[site]

        edits = [Edit(s, _Estimate(s, learn, self.causal, key=f"estimate-{s}")) for s in targets]
        model.run(joined(examples.negative), record=list(targets)[-1:], edits=edits)
        self.maps_ = maps

    def _bounds(self, source_ND: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.support is None:
            return None, None
        out = (1 - self.support) / 2
        return source_ND.quantile(out, dim=0), source_ND.quantile(1 - out, dim=0)

    def _act(self, strength: Strength) -> list[Edit]:
        return [Edit(s, replace(found, strength=strength)) for s, found in self.maps_.items()]


def affine(source_ND: Tensor, target_MD: Tensor, kind: Kind = "linear") -> tuple[Tensor, Tensor]:
    """Return slope and bias, (D,) each, that take the source of each unit to the target.

    Raises:
        InputError: A side has one row only, the widths differ, or the kind is unknown.
    """
    if min(len(source_ND), len(target_MD)) < 2 or source_ND.shape[1:] != target_MD.shape[1:]:
        shapes = f"{tuple(source_ND.shape)} and {tuple(target_MD.shape)}"
        raise InputError(f"a map needs at least 2 rows of one width on each side, got {shapes}")
    a_KD, b_KD, share_K1 = coupled(source_ND.double(), target_MD.double())
    mean_a_D, mean_b_D = (share_K1 * a_KD).sum(0), (share_K1 * b_KD).sum(0)
    var_a_D = (share_K1 * (a_KD - mean_a_D) ** 2).sum(0)
    if kind == "linear":
        slope_D = (share_K1 * (a_KD - mean_a_D) * (b_KD - mean_b_D)).sum(0) / var_a_D
    elif kind == "gaussian":
        slope_D = ((share_K1 * (b_KD - mean_b_D) ** 2).sum(0) / var_a_D).sqrt()
    elif kind == "mean":
        slope_D = torch.ones_like(mean_a_D)
    else:
        raise InputError(f"kind must be linear, mean or gaussian, got {kind!r}")
    slope_D = torch.where(source_ND.amax(0) > source_ND.amin(0), slope_D, 1.0)
    return slope_D.to(source_ND), (mean_b_D - slope_D * mean_a_D).to(source_ND)


@dataclass(frozen=True, eq=False)
class _Estimate(Controller):
    """Learn a site's map from a whole batch and, if it moves, let the batch go on as mapped."""

    site: str
    learn: Callable[[str, Tensor], Transport]
    moves: bool

    def act(self, x: Tensor, memory: dict[str, Any], context: ForwardContext) -> Tensor:
        found = self.learn(self.site, pooled(x, context.rows(len(x), x.shape[1])))
        return found.like(x, "")(x) if self.moves else x
