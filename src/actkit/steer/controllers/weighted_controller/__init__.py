"""Let a small network, which reads early layers, weigh one direction at each later layer.

Shapes: N examples, B batch, T tokens, D width, L layers that are edited, H hidden units.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.digest import digest
from actkit.core.edits.controller import Controller
from actkit.core.edits.edit import Edit
from actkit.core.edits.operation import strength as spread
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.core.run.context import ForwardContext
from actkit.model import Model
from actkit.steer._base import ContrastSteerer, Strength
from actkit.steer._examples import Examples
from actkit.steer._states import by_layer, chosen_layers, states
from actkit.steer.controllers.weighted_controller._weighing import Weighing, trained

GAINS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "raw": lambda s: s,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
}
DEPTHS = (0.3, 0.5)
END = Where(tokens="last")


@dataclass(frozen=True, eq=False)
class Read(Controller):
    """Add what one layer's last token says to the controller's hidden units."""

    identifier: ClassVar[str] = "weighted_controller.read"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer.weighted_controller:Read",)
    into_HD: Tensor
    bias_H: Tensor
    first: bool

    def act(self, x: Tensor, memory: dict[str, Any], context: ForwardContext) -> Tensor:
        """Return x, unchanged."""
        last_BD = x[context.last(len(x), x.shape[1])]
        memory["hidden"] = (self.bias_H if self.first else memory["hidden"]) + (
            last_BD @ self.into_HD.mT
        )
        return x


@dataclass(frozen=True, eq=False)
class DosedDirection(Controller):
    """Add the direction as much as the hidden units ask for at one layer."""

    identifier: ClassVar[str] = "weighted_controller.patch"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer.weighted_controller:Patch",)
    direction_D: Tensor
    out_2H: Tensor
    bias_2: Tensor
    gain: str

    def act(self, x: Tensor, memory: dict[str, Any], context: ForwardContext) -> Tensor:
        """Return x + strength gain(s) sigmoid(w) r."""
        s_B, w_B = (memory["hidden"].relu() @ self.out_2H.mT + self.bias_2).unbind(-1)
        dose_B = GAINS[self.gain](s_B) * w_B.sigmoid()
        return x + self.dose(x) * spread(dose_B, x) * self.direction_D


@method(source="Hegazy et al. 2025, arXiv:2505.20309")
@dataclass
class WeightedController(ContrastSteerer):
    """Steer those inputs that need it: a controller reads some layers and doses later ones.

    The direction is the unit mean difference of the two sides' last tokens at one layer. At the
    prompt's end and at each written token the controller reads the last token at a few layers,
    before any edit; it gives one number s, large on inputs like the positive side, and a weight
    of each layer above. There the last token moves by strength * scale * gain(s) * sigmoid(w_l)
    times the direction. Differences from the paper: layers up to the highest that is read are
    not edited, so that what is read and what is done belong to the same step; and the gain is
    a sigmoid, since the raw s, which the authors' code uses, pushes the other way where the
    controller sees no need.

    Args:
        reads: Blocks whose output is read; at 30 and 50 % of the depth if None.
        source: Block at whose output the direction is taken; at 60 % of the depth if None.
        gain: What becomes of s: "sigmoid"; "raw"; or "relu".
        scale: Length of the direction at strength 1, in units of the residual stream.
        num_hidden: Hidden units of the controller.
        num_epochs: Passes over the examples.
        rate: AdamW's learning rate.
        seed: Of the first weights and of the order of examples.

    Attributes:
        direction_: (D,), of unit length.
        network_: The controller.
        reads_: The K layers that are read.
        layers_: The L layers that are edited.

    Example:
        >>> import torch
        >>> bias_2 = torch.tensor([4.0, 0.0])
        >>> patch = DosedDirection(torch.ones(2), torch.zeros(2, 3), bias_2, "raw", key="")
        >>> patch.act(torch.zeros(1, 1, 2), {"hidden": torch.ones(1, 3)}, None)
        tensor([[[2., 2.]]])
        >>> import actkit as ak
        >>> sides = zip("love joy good kind".split(), "hate grief bad cruel".split(), strict=True)
        >>> steerer = WeightedController(num_epochs=1).fit(ak.open("smollm2"), list(sides))
        >>> steerer.reads_, steerer.direction_.shape
        ([9, 15], torch.Size([576]))
    """

    grid = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0)
    reads: int | Sequence[int] | None = None
    source: int | None = None
    gain: Literal["sigmoid", "raw", "relu"] = "sigmoid"
    scale: float = 4.0
    num_hidden: int = 1024
    num_epochs: int = 20
    rate: float = 5e-5
    seed: int = 0
    direction_: Tensor = field(init=False, repr=False)
    network_: Weighing = field(init=False, repr=False)
    reads_: list[int] = field(init=False, repr=False)
    layers_: list[int] = field(init=False, repr=False)

    def demand(self, model: Model, inputs: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Return what the controller asks for at the end of inputs: s (N,) and the weights (N, L).

        Args:
            model: The network that it was fitted on.
            inputs: Texts, chats, or whatever else one input is.
        """
        read = states(model, inputs, [f"resid_post.{n}" for n in self.reads_])
        return self.network_(torch.stack(list(read.values()), 1))

    def _contrast(self, model: Model, examples: Examples) -> None:
        if self.gain not in GAINS:
            raise InputError(f"the gain must be one of {', '.join(GAINS)}, got {self.gain!r}")
        known = {s.depth: s for s in model.sites("resid_post.*")}
        (source,) = chosen_layers(self.source, known)
        depths = DEPTHS if self.reads is None else DEPTHS[:1]
        self.reads_ = sorted({n for d in depths for n in chosen_layers(self.reads, known, d)})
        self.layers_ = [n for n in known if n > self.reads_[-1]]
        if not self.layers_:
            raise InputError(
                f"a layer above those that are read must be left to edit, got {self.reads_} "
                f"of {len(known)} layers"
            )
        needed = [f"resid_post.{n}" for n in sorted({source, *self.reads_})]
        yes, no = (
            by_layer(states(model, side, needed)) for side in (examples.positive, examples.negative)
        )
        r_D = yes[source].mean(0) - no[source].mean(0)
        if not (length := r_D.norm()) > 0:
            raise InputError(f"the sides must differ in their mean at layer {source}, got {length}")
        self.direction_ = r_D / length
        yes_NKD, no_NKD = (torch.stack([side[n] for n in self.reads_], 1) for side in (yes, no))
        sizes = len(self.layers_), self.num_hidden, self.num_epochs
        self.network_ = trained(yes_NKD, no_NKD, *sizes, self.rate, self.seed)

    def _act(self, strength: Strength) -> list[Edit]:
        net, r_D = self.network_, self.scale * self.direction_
        shared: dict[str, Any] = {
            "key": f"weighted-controller-{digest([r_D, *net.tensors()])[:12]}",
            "strength": strength,
        }
        reads = [
            Read(into_HD, net.bias_H, i == 0, **shared) for i, into_HD in enumerate(net.into_KHD)
        ]
        patches = [
            DosedDirection(r_D, net.out_EH[[0, i]], net.bias_E[[0, i]], self.gain, **shared)
            for i in range(1, len(net.out_EH))
        ]
        made = zip([*self.reads_, *self.layers_], [*reads, *patches], strict=True)
        return [Edit(f"resid_post.{n}", own, END) for n, own in made]
