"""Let a small network, which reads early layers, weigh one direction at each later layer.

Shapes: N examples, B batch, T tokens, D width, L layers that are edited, H hidden units.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from actkit.catalog import method
from actkit.core.controller import Controller
from actkit.core.digest import digest
from actkit.core.edit import Edit
from actkit.core.errors import InputError
from actkit.core.model import Model
from actkit.core.moment import Moment
from actkit.core.operations import strength as spread
from actkit.core.progress import track
from actkit.core.where import Where
from actkit.steer._base import ContrastSteerer, Strength
from actkit.steer._examples import Examples
from actkit.steer._math import by_layer, chosen_layers, states

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

    into_HD: Tensor
    bias_H: Tensor
    first: bool

    def act(self, x: Tensor, memory: dict[str, Any], moment: Moment) -> Tensor:
        """Return x, unchanged."""
        last_BD = x[moment.last(len(x), x.shape[1])]
        memory["hidden"] = (self.bias_H if self.first else memory["hidden"]) + (
            last_BD @ self.into_HD.mT
        )
        return x


@dataclass(frozen=True, eq=False)
class Patch(Controller):
    """Add the direction as much as the hidden units ask for at one layer."""

    direction_D: Tensor
    out_2H: Tensor
    bias_2: Tensor
    gain: str

    def act(self, x: Tensor, memory: dict[str, Any], moment: Moment) -> Tensor:
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
        batch_size: Examples of one side in a step.
        seed: Of the first weights and of the order of examples.

    Attributes:
        direction_: (D,), of unit length.
        into_: (K, H, D) of the K layers that are read, and `bias_`, (H,).
        out_: (1 + L, H), s first, and `out_bias_`, (1 + L,).
        reads_: The K layers that are read.
        layers_: The L layers that are edited.

    Example:
        >>> import torch
        >>> patch = Patch(torch.ones(2), torch.zeros(2, 3), torch.tensor([4.0, 0.0]), "raw", key="")
        >>> patch.act(torch.zeros(1, 1, 2), {"hidden": torch.ones(1, 3)}, None)
        tensor([[[2., 2.]]])
    """

    grid = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0)
    reads: int | Sequence[int] | None = None
    source: int | None = None
    gain: Literal["sigmoid", "raw", "relu"] = "sigmoid"
    scale: float = 4.0
    num_hidden: int = 1024
    num_epochs: int = 20
    rate: float = 5e-5
    batch_size: int = 4
    seed: int = 0
    direction_: Tensor = field(init=False, repr=False)
    into_: Tensor = field(init=False, repr=False)
    bias_: Tensor = field(init=False, repr=False)
    out_: Tensor = field(init=False, repr=False)
    out_bias_: Tensor = field(init=False, repr=False)
    reads_: list[int] = field(init=False, repr=False)
    layers_: list[int] = field(init=False, repr=False)

    def demand(self, model: Model, inputs: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Return what the controller asks for at the end of inputs: s (N,) and the weights (N, L).

        Args:
            model: The network that it was fitted on.
            inputs: Texts, chats, or whatever else one input is.
        """
        read = states(model, inputs, [f"resid_post.{n}" for n in self.reads_])
        x_NKD = torch.stack(list(read.values()), 1)
        s_N, w_NL = _decide(x_NKD, self.into_, self.bias_, self.out_, self.out_bias_)
        return s_N, w_NL.sigmoid()

    def _contrast(self, model: Model, examples: Examples) -> None:
        if self.gain not in GAINS:
            raise InputError(f"the gain must be one of {', '.join(GAINS)}, got {self.gain!r}")
        known = {int(s.name.rpartition(".")[2]): s for s in model.sites("resid_post.*")}
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
        yes, no = (by_layer(states(model, side, needed))
                   for side in (examples.positive, examples.negative))  # fmt: skip
        r_D = yes[source].mean(0) - no[source].mean(0)
        if not (length := r_D.norm()) > 0:
            raise InputError(f"the sides must differ in their mean at layer {source}, got {length}")
        self.direction_ = r_D / length
        self._train(*(torch.stack([side[n] for n in self.reads_], 1) for side in (yes, no)))

    def _train(self, yes_NKD: Tensor, no_NKD: Tensor) -> None:
        gen = torch.Generator().manual_seed(self.seed)
        num_reads, width = yes_NKD.shape[1:]
        weights = _first_weights(num_reads, width, self.num_hidden, 1 + len(self.layers_), gen)
        weights = [w.to(yes_NKD.device).requires_grad_() for w in weights]
        optimiser = torch.optim.AdamW(weights, lr=self.rate, fused=True)
        for _ in track(range(self.num_epochs), "training the controller"):
            for x_NKD, wanted in ((yes_NKD, 1.0), (no_NKD, 0.0)):
                order_N = torch.randperm(len(x_NKD), generator=gen)
                for index in torch.split(order_N, self.batch_size):
                    s_N, w_NL = _decide(x_NKD[index.to(x_NKD.device)], *weights)
                    loss = cross_entropy(s_N, torch.full_like(s_N, wanted))
                    if wanted:
                        w_NL = w_NL.sigmoid()
                        loss = loss + 0.1 * ((w_NL - 0.5).abs().mean() + 0.01 * w_NL.mean())
                    optimiser.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    torch.nn.utils.clip_grad_norm_(weights, 1.0)
                    optimiser.step()
        self.into_, self.bias_, self.out_, self.out_bias_ = (w.detach() for w in weights)

    def _act(self, strength: Strength) -> list[Edit]:
        learnt = [self.direction_, self.into_, self.bias_, self.out_, self.out_bias_]
        key = f"weighted-controller-{digest(learnt)[:12]}"
        reads = [
            Read(into_HD, self.bias_, i == 0, key=key, strength=strength)
            for i, into_HD in enumerate(self.into_)
        ]
        patches = [
            Patch(
                self.scale * self.direction_,
                self.out_[[0, i]],
                self.out_bias_[[0, i]],
                self.gain,
                key=key,
                strength=strength,
            )
            for i in range(1, len(self.out_))
        ]
        made = zip([*self.reads_, *self.layers_], [*reads, *patches], strict=True)
        return [Edit(f"resid_post.{n}", own, END) for n, own in made]


def _first_weights(
    num_reads: int, width: int, num_hidden: int, num_out: int, gen: torch.Generator
) -> list[Tensor]:
    """Return uniform weights as `torch.nn.Linear` draws them, from a generator of their own."""
    wide = num_reads * width
    shapes = [
        ((num_reads, num_hidden, width), wide),
        ((num_hidden,), wide),
        ((num_out, num_hidden), num_hidden),
        ((num_out,), num_hidden),
    ]
    return [(2 * torch.rand(shape, generator=gen) - 1) / fan**0.5 for shape, fan in shapes]


def _decide(
    x_NKD: Tensor, into_KHD: Tensor, bias_H: Tensor, out: Tensor, out_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return s (N,) and the layers' weights as logits (N, L)."""
    hidden_NH = (torch.einsum("nkd,khd->nh", x_NKD, into_KHD) + bias_H).relu()
    decided = hidden_NH @ out.mT + out_bias
    return decided[:, 0], decided[:, 1:]
