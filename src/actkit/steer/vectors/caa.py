"""Add the mean difference between two sides of examples from the prompt's end on.

Shapes: N pairs, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit
from actkit.core.edits.where import Where
from actkit.model import Model
from actkit.steer._base import ContrastSteerer, Strength
from actkit.steer._examples import Examples
from actkit.steer._states import additive, by_layer, chosen_layers, states


@method(source="Rimsky et al. 2023, arXiv:2312.06681, section 3")
@dataclass
class CAA(ContrastSteerer):
    """Contrastive activation addition: a steering vector from pairs that differ in one answer.

    Pairs hold the same question and end with another answer; where the answers are letters,
    each letter should stand on both sides equally often, so that letters cancel. As in the paper.

    Args:
        layers: Blocks after which the vector is added; the one at 60 % of the depth if None.
        normalise: Give each layer's vector the mean length that the states have there.

    Attributes:
        vectors_: (D,) of each layer.

    Example:
        >>> import actkit as ak
        >>> m = ak.open("smollm2")
        >>> caa = CAA(layers=15).fit(m, [("I love it", "I hate it"), ("So good", "So bad")])
        >>> [edit.site for edit in caa.edits(2.0)]
        ['resid_post.15']
    """

    layers: int | Sequence[int] | None = None
    normalise: bool = False
    vectors_: dict[int, Tensor] = field(init=False, repr=False, default_factory=dict)

    def _contrast(self, model: Model, examples: Examples) -> None:
        examples.check_paired()
        positive = by_layer(states(model, examples.positive, "resid_post.*"))
        negative = by_layer(states(model, examples.negative, "resid_post.*"))
        for layer, plus_ND in positive.items():
            v_D = (plus_ND - negative[layer]).mean(0)
            if self.normalise:
                v_D = v_D / v_D.norm() * plus_ND.norm(dim=-1).mean()
            self.vectors_[layer] = v_D

    def _act(self, strength: Strength) -> list[Edit]:
        layers = chosen_layers(self.layers, self.vectors_)
        return additive(self.vectors_, layers, strength, Where(tokens="last"))
