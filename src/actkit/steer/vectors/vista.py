"""Push decoding towards what an image, or any evidence, adds to the states.

Shapes: N pairs, B batch, T tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from actkit.catalog import method
from actkit.core.edits.controller import StrengthOperation
from actkit.core.edits.edit import Edit
from actkit.core.edits.operation import spread
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.steer._base import Steerer, Strength
from actkit.steer._examples import Examples
from actkit.steer._states import by_layer, chosen_layers, states


@method(source="Li et al. 2025, arXiv:2502.03628, section 3")
@dataclass
class Vista(Steerer):
    """Visual steering vectors: the state with the image less the state without, at each layer.

    Without an image to leave out, evidence in the context takes its place. The vectors belong to
    one input: of one pair they steer every row of a batch, of N pairs they steer a batch of N
    rows, each with its own. The other half of the paper is `self_logits`. As in the authors'
    code, where what a block's MLP returns is turned towards the vector and keeps its length; the
    paper's own form is `point="resid_post", simple=True`.

    `fit` takes pairs (with, without), or a mapping of `positive` and `negative` inputs; an input
    is a text, or what else the network takes, such as a dict of token ids and pixels.

    Args:
        layers: Blocks in which it acts; all if None.
        scale: The paper's lambda at strength 1; there from 0.01 to 0.4, by network.
        point: What is turned, in each block.
        simple: Leave out the factor that pushes states harder which point away from the vector.

    Attributes:
        vectors_: (D,) of each layer, (N, D) of several pairs.

    Example:
        >>> import actkit as ak
        >>> m = ak.open("smollm2")
        >>> vista = Vista(layers=[20, 21]).fit(m, [("A red car. The car is", "The car is")])
        >>> [edit.site for edit in vista.edits()]
        ['mlp_out.20', 'mlp_out.21']
    """

    grid: ClassVar[tuple[float, ...]] = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0)
    layers: int | Sequence[int] | None = None
    scale: float = 0.1
    point: Literal["mlp_out", "resid_post"] = "mlp_out"
    simple: bool = False
    vectors_: dict[int, Tensor] = field(init=False, repr=False, default_factory=dict)

    def _learn(self, model: Model, data: Any) -> dict[str, Any]:
        pairs = Examples.of(data).check_paired()
        with_image = by_layer(states(model, pairs.positive, "resid_post.*"))
        without = by_layer(states(model, pairs.negative, "resid_post.*"))
        self.vectors_ = {}
        for layer, positive_ND in with_image.items():
            v_ND = positive_ND - without[layer]
            if same := (v_ND == 0).all(-1).nonzero()[:, 0].tolist():
                raise InputError(
                    f"evidence must move the last token's state, got none at layer {layer} for "
                    f"the pairs {same} of {len(v_ND)}"
                )
            self.vectors_[layer] = v_ND[0] if len(v_ND) == 1 else v_ND
        return pairs.facts()

    def _act(self, strength: Strength) -> list[Edit]:
        layers = range(len(self.vectors_)) if self.layers is None else self.layers
        return [
            Edit(
                f"{self.point}.{n}",
                TurnTowardsEvidence(self.vectors_[n], self.simple, strength=strength * self.scale),
                Where(tokens="last"),
            )
            for n in chosen_layers(layers, self.vectors_)
        ]


@dataclass(frozen=True, eq=False)
class TurnTowardsEvidence(StrengthOperation):
    """Turn x towards a vector, (D,) or (B, D), and leave its length as it is."""

    identifier: ClassVar[str] = "vista.turn"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer.vista:Turn",)
    vector: Tensor
    simple: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Return |x| normalize(x / |x| + s (1 + max(0, cos(x, -v))) v / |v|)."""
        unit, v = normalize(x, dim=-1), spread(normalize(self.vector, dim=-1), x)
        dose = self.dose(x)
        away = 0.0 if self.simple else -(unit * v).sum(-1, keepdim=True).clamp_max(0)
        turned = normalize(unit + dose * (1 + away) * v, dim=-1)
        new = x.norm(dim=-1, keepdim=True) * turned
        return torch.where(dose == 0, x, new) if isinstance(dose, Tensor) else new

    def extent(self, num_axes: int) -> tuple[int, ...]:
        """Return the sizes that strengths and vectors fix: rows by either, and the width."""
        rows, *rest = super().extent(num_axes)
        return (max(rows, len(self.vector) if self.vector.dim() > 1 else 1), *rest)
