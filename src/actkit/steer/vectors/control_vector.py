"""Read a task's control vector from the states after its examples, and add it at every token.

Shapes: N examples, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.controller import StrengthOperation
from actkit.core.edits.edit import Edit
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.steer._base import ContrastSteerer, Strength
from actkit.steer._examples import Examples
from actkit.steer._states import additive, by_layer, chosen_layers, states

Readout = Literal["reading", "reading_contrast", "pca_contrast"]


def control_vector(
    positive_ND: Tensor,
    negative_ND: Tensor,
    readout: Readout = "reading_contrast",
    standardize: bool = True,
) -> Tensor:
    """Return the (D,) control vector of two sides of states, as `ControlVector` describes it.

    Raises:
        InputError: The readout is unknown, or paired differences are asked of unpaired sides.

    Example:
        >>> plus, minus = torch.tensor([[3.0, 5.0], [4.0, 5.0]]), torch.tensor([[1.0, 5.0]] * 2)
        >>> control_vector(plus, minus, "pca_contrast")
        tensor([2.5000, 0.0000])
    """
    if readout not in get_args(Readout):
        raise InputError(f"readout must be one of {get_args(Readout)}, got {readout!r}")
    if readout == "reading":
        return positive_ND.mean(0)
    difference_D = positive_ND.mean(0) - negative_ND.mean(0)
    if readout == "reading_contrast":
        return difference_D
    if positive_ND.shape != negative_ND.shape:
        shapes = f"{tuple(positive_ND.shape)} and {tuple(negative_ND.shape)}"
        raise InputError(f"paired differences need sides of one shape, got {shapes}")
    c_D: Tensor = torch.linalg.svd(positive_ND - negative_ND, full_matrices=False).Vh[0]
    c_D = c_D * (c_D @ difference_D).sign()
    return c_D * difference_D.norm() if standardize else c_D


@method(source="Hojer et al. 2025, arXiv:2504.19483, ICLR")
@dataclass
class ControlVector(ContrastSteerer):
    """A control vector, by one of three readouts, added to the stream at all tokens.

    Positive examples are tasks with their right answer; negative ones random characters or wrong
    answers. As in the paper, but for the principal component: it is of the differences as they
    are and not less their mean, which would leave out the shift that all pairs share, and it
    points to the positive side.

    Args:
        readout: "reading", the mean of the positive states; "reading_contrast", the mean
            difference; "pca_contrast", the first principal component of the paired differences.
        layers: Blocks after which the vector is added; the middle one if None.
        standardize: Give the principal component, else of length 1, the mean difference's length.
        normalise: Keep each state's length as it was.

    Attributes:
        vectors_: (D,) of each layer.

    Example:
        >>> import actkit as ak
        >>> m = ak.open("smollm2")
        >>> cv = ControlVector().fit(m, [("1 + 1 = 2", "kq dj ax"), ("2 + 3 = 5", "wv zz o")])
        >>> [edit.site for edit in cv.edits(0.5)]
        ['resid_post.15']
    """

    readout: Readout = "reading_contrast"
    layers: int | Sequence[int] | None = None
    standardize: bool = True
    normalise: bool = False
    vectors_: dict[int, Tensor] = field(init=False, repr=False, default_factory=dict)

    def _contrast(self, model: Model, examples: Examples) -> None:
        positive = by_layer(states(model, examples.positive, "resid_post.*"))
        negative = by_layer(states(model, examples.negative, "resid_post.*"))
        self.vectors_ = {
            n: control_vector(positive[n], negative[n], self.readout, self.standardize)
            for n in positive
        }

    def _act(self, strength: Strength) -> list[Edit]:
        layers = chosen_layers(self.layers, self.vectors_, depth=0.5)
        if not self.normalise:
            return additive(self.vectors_, layers, strength)
        turned = {n: TurnState(self.vectors_[n], strength=strength) for n in layers}
        return [Edit(f"resid_post.{n}", turn) for n, turn in turned.items()]


@dataclass(frozen=True, eq=False)
class TurnState(StrengthOperation):
    """Add strength times a vector, then give each state its old length back.

    Example:
        >>> TurnState(torch.tensor([0.0, 3.0]))(torch.tensor([[[4.0, 0.0]]]))
        tensor([[[3.2000, 2.4000]]])
    """

    identifier: ClassVar[str] = "control_vector.turn"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer.control_vector:Turn",)
    vector: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return |x| (x + s v) / |x + s v|, which is x bit by bit in rows of strength 0."""
        new: Tensor = x + self.dose(x) * self.vector
        length = new.norm(dim=-1, keepdim=True)
        scale: Tensor = x.norm(dim=-1, keepdim=True) / length.clamp_min(torch.finfo(x.dtype).tiny)
        return new * scale
