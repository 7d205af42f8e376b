"""Shorten a chain of thought: steer from verbose to concise answers, with a bound on the KL.

Shapes: N pairs, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit
from actkit.core.edits.where import Where
from actkit.model import Model
from actkit.steer._base import ContrastSteerer, Strength
from actkit.steer._examples import Examples
from actkit.steer._gain import kl_bounded_gain
from actkit.steer._states import additive, by_layer, chosen_layers, states


@method(source="Azizi et al. 2025, arXiv:2507.04742, sections 3 and 4")
@dataclass
class ASC(ContrastSteerer):
    """Activation-steered compression: one vector from verbose to concise reasoning.

    A pair is a question with a concise answer (positive) and the same with a verbose one. As in
    the paper; the released code adds the vector with the other sign, towards verbose answers, so
    here the sign is that of the examples.

    Args:
        layers: Blocks after which the vector is added; the one at 70 % of the depth if None.

    Attributes:
        vectors_: (D,) of each layer, concise less verbose.

    Example:
        >>> import actkit as ak
        >>> m = ak.open("smollm2")
        >>> asc = ASC().fit(m, [("2 + 3? 5", "2 + 3? Let us think. First, 2 + 3 is 5")])
        >>> [edit.site for edit in asc.bounded(m, ["4 + 4?", "What is 7 - 2?"], eps=0.05)]
        ['resid_post.21']
    """

    layers: int | Sequence[int] | None = None
    vectors_: dict[int, Tensor] = field(init=False, repr=False, default_factory=dict)

    def bounded(self, model: Model, prompts: Any, eps: float = 0.05) -> list[Edit]:
        """Return edits that move the next token's distribution by eps nats of KL on average.

        Args:
            model: The network.
            prompts: A few dozen that are like those to come.
            eps: As in `kl_bounded_gain`.
        """
        return self.edits(kl_bounded_gain(model, self.edits, prompts, eps))

    def _contrast(self, model: Model, examples: Examples) -> None:
        examples.check_paired()
        concise = by_layer(states(model, examples.positive, "resid_post.*"))
        verbose = by_layer(states(model, examples.negative, "resid_post.*"))
        self.vectors_ = {n: (concise[n] - verbose[n]).mean(0) for n in concise}

    def _act(self, strength: Strength) -> list[Edit]:
        layers = chosen_layers(self.layers, self.vectors_, depth=0.7)
        return additive(self.vectors_, layers, strength, Where(tokens="last"))
