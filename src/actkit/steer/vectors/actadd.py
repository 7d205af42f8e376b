"""Add the difference between two prompts, position by position, at the start of the text.

Shapes: N pairs, P positions, D width, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.controller import StrengthOperation
from actkit.core.edits.edit import Edit
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.model import Model
from actkit.steer._base import ContrastSteerer, Strength
from actkit.steer._examples import Examples
from actkit.steer._states import by_layer, chosen_layers


@dataclass(frozen=True, eq=False)
class AddIfReached(StrengthOperation):
    """Add a vector at a position, which short texts may not reach."""

    identifier: ClassVar[str] = "actadd.add_if_reached"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer.actadd:AddIfReached",)
    vector: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return x + strength * vector."""
        return x + self.dose(x) * self.vector

    @property
    def may_rest(self) -> bool:
        """Say that a text may end before the position."""
        return True


@method(source="Turner et al. 2023, arXiv:2308.10248, algorithm 1")
@dataclass
class ActAdd(ContrastSteerer):
    """Activation addition: what one pair of prompts differs in, added at the first positions.

    The shorter prompt is padded with spaces; the difference of the inputs of a block at the
    prompts' positions is added at the same positions of any text and reaches later tokens by
    attention. As in the paper, with the first positions kept as they are, since SmolLM2's first
    token carries a massive activation; of several pairs, all padded to one length, the mean
    difference is taken; a text that is shorter takes the part that fits.

    Args:
        layers: Blocks to whose inputs it is added; the one at 60 % of the depth if None.
        first: Positions that are kept as they are (>= 0).
        start: Text before both prompts, such as "<|endoftext|>"; a prompt of one token needs one
            where the tokenizer puts none there itself.

    Attributes:
        vectors_: (P, D) of each layer, for the positions from `first` on.

    Example:
        >>> import actkit as ak
        >>> m = ak.open("smollm2")
        >>> actadd = ActAdd(layers=15, start="<|endoftext|>").fit(m, [(" Love", " Hate")])
        >>> [(edit.site, edit.where.tokens) for edit in actadd.edits(5.0)]
        [('resid_pre.15', 1), ('resid_pre.15', 2)]
    """

    layers: int | Sequence[int] | None = None
    first: int = 1
    start: str = ""
    vectors_: dict[int, Tensor] = field(init=False, repr=False, default_factory=dict)

    def _contrast(self, model: Model, examples: Examples) -> None:
        pairs = self._padded(model, examples.check_paired())
        sums: dict[int, Tensor] = {}
        for pair in track(pairs, "reading pairs"):
            acts = by_layer(model.run(pair, record="resid_pre.*"))
            for layer, (plus_TD, minus_TD) in acts.items():
                sums[layer] = sums.get(layer, 0.0) + (plus_TD - minus_TD)[self.first :].float()
        self.vectors_ = {layer: sum_PD / len(pairs) for layer, sum_PD in sums.items()}

    def _padded(self, model: Model, examples: Examples) -> list[list[list[int]]]:
        """Return pairs of token ids, all of one length."""
        sides = (*examples.positive, *examples.negative)
        if model.tokenizer is None or not all(isinstance(text, str) for text in sides):
            raise InputError("pairs must be texts, and the network must have a tokenizer")
        ids = [list(model.tokenizer(self.start + text)["input_ids"]) for text in sides]
        length = max(map(len, ids))
        if not 0 <= self.first < length:
            raise InputError(
                f"the kept positions must leave one of the {length} of the longest prompt, "
                f"got first={self.first}; `start` puts a token before the prompts"
            )
        space = list(model.tokenizer(" ", add_special_tokens=False)["input_ids"])[-1:]
        if not space and min(map(len, ids)) < length:
            raise InputError(
                "prompts of unequal length need a tokenizer with a token for a space, got lengths "
                f"{min(map(len, ids))} to {length}"
            )
        full = [row + space * (length - len(row)) for row in ids]
        half = len(examples.positive)
        return [[plus, minus] for plus, minus in zip(full[:half], full[half:], strict=True)]

    def _act(self, strength: Strength) -> list[Edit]:
        return [
            Edit(
                f"resid_pre.{layer}",
                AddIfReached(v_D, strength=strength),
                Where(tokens=self.first + i),
            )
            for layer in chosen_layers(self.layers, self.vectors_)
            for i, v_D in enumerate(torch.unbind(self.vectors_[layer]))
        ]
