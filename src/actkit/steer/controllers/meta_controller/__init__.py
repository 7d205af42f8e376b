"""Control a frozen sequence model by codes that are held for as long as a sub-goal lasts.

Shapes: B batch, N sequences, T steps, D width, Z code, V actions (or tokens).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

from actkit.catalog import method
from actkit.core.digest import digest
from actkit.core.edits.controller import StrengthOperation
from actkit.core.edits.edit import Edit, apply
from actkit.core.errors import InputError, NotFittedError
from actkit.core.progress import track
from actkit.model import Model
from actkit.steer._base import Steerer, Strength
from actkit.steer.controllers.meta_controller._internal_rl import (
    InternalPolicy,
    Training,
    World,
    reinforce,
)
from actkit.steer.controllers.meta_controller._meta_network import Codes, MetaNetwork


@dataclass(frozen=True, eq=False)
class Recode(StrengthOperation):
    """Add U_t e_t, with the codes that the encoder reads from the whole sequence."""

    identifier: ClassVar[str] = "meta_controller.recode"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer.meta_controller:Recode",)
    weights: Tensor
    sizes: tuple[int, int, int, int]

    def width(self) -> int:
        """Return D."""
        return self.sizes[0]

    def __call__(self, x: Tensor) -> Tensor:
        """Return e + strength U e."""
        network = MetaNetwork(*self.sizes, seed=0).to(x.device)
        vector_to_parameters(self.weights, network.parameters())
        return x + self.dose(x) * network.control(x, network.encode(x).code_BTZ)


def free_energy(
    model: Model,
    network: MetaNetwork,
    site: str,
    given: tuple[Any, Tensor],
    rate: float,
    gen: torch.Generator,
) -> Tensor:
    """Return the controlled model's NLL of the next actions + rate * KL(proposals, N(0, I)).

    Args:
        model: The network that is controlled.
        network: The controller.
        site: Where it reads and writes.
        given: Inputs of N sequences, and the actions (N, T) that follow; -100 is left out.
        rate: Nats of NLL that a nat of code is worth.
        gen: Of the proposals' noise.
    """
    read: list[Codes] = []

    def controlled(e_BTD: Tensor) -> Tensor:
        read.append(network.encode(e_BTD, gen))
        return e_BTD + network.control(e_BTD, read[0].code_BTZ)

    inputs, actions_NT = given
    logits = model.run(inputs, edits=[apply(site, controlled)], logits=True, grad=True).logits
    if logits.shape[:-1] != actions_NT.shape:
        shapes = f"{tuple(logits.shape)} must have the actions' (N, T), {tuple(actions_NT.shape)}"
        raise InputError(f"logits {shapes}")
    nll = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), actions_NT.to(logits.device).flatten()
    )
    return nll + rate * read[0].divergence()


@method(source="Kobayashi et al. 2025, arXiv:2512.20605")
@dataclass
class MetaController(Steerer):
    """Find temporally abstract actions in a frozen autoregressive model, and steer by them.

    A higher-order network reads the residual stream e of whole sequences and proposes a code at
    each step; a switching unit holds the last code or takes the proposal over; the code decodes
    to a low-rank matrix U_t, and e_t + U_t e_t flows on. What trains it is that the controlled
    model should predict the next actions, at a price for each nat of code, which is cheapest if
    codes are replaced where a sub-goal begins. Only the controller learns. Differences from the
    paper: the price rises from 0 during the first half of training, since codes die out
    otherwise; the switching unit starts at holding; it has no recurrent state of its own but e.

    `edits` act with the codes that the encoder reads, so on whole sequences of one length; where
    the future is not known, `internal_rl` puts a policy in the encoder's place.

    `data` is a mapping: `inputs`, N sequences as the network takes them, one tensor whose first
    axis is N; and `actions`, the (N, T) whole numbers that the network should predict; -100 is
    left out.

    Args:
        site: Where the stream is read and written, at mid-depth.
        num_codes: Numbers in a code.
        rank: Of U_t.
        num_hidden: Units of the controller.
        rate: Nats of prediction that a nat of code is worth.
        num_steps: Steps of training.
        batch_size: Sequences in a step.
        learning_rate: Adam's.
        seed: Of weights, batches and noise.

    Attributes:
        network_: The controller.

    Example:
        >>> net = MetaNetwork(width=2, num_codes=1, rank=1, num_hidden=3, seed=0)
        >>> _ = torch.nn.init.constant_(net.switch.bias, -1e9)  # a switch that always holds
        >>> net.hold(torch.ones(1, 3, 1), torch.ones(1, 3, 2))[0].flatten().tolist()
        [0.0, 0.0, 0.0]
        >>> import actkit as ak
        >>> model = ak.open(torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(2, 3)))
        >>> data = {"inputs": torch.ones(4, 3, 2), "actions": torch.zeros(4, 3).long()}
        >>> [edit.site for edit in MetaController("0:out", num_steps=2).fit(model, data).edits()]
        ['0:out']
    """

    site: str
    num_codes: int = 4
    rank: int = 4
    num_hidden: int = 32
    rate: float = 0.2
    num_steps: int = 600
    batch_size: int = 32
    learning_rate: float = 3e-3
    seed: int = 0
    network_: MetaNetwork = field(init=False, repr=False)

    def codes(self, model: Model, inputs: Any) -> Codes:
        """Return the codes of whole sequences, and where they are replaced."""
        self._check_fitted()
        with torch.no_grad():
            return self.network_.encode(model.run(inputs, self.site)[self.site])

    def internal_rl(self, model: Model, world: World, **settings: Any) -> InternalPolicy:
        """Learn a causal policy over codes from a reward; model and controller stay as they are.

        Args:
            model: The network that it was fitted on.
            world: What the network acts in; see `World`.
            settings: Of `Training`.

        Returns:
            The policy, with the mean reward of each round.
        """
        self._check_fitted()
        return reinforce(model, self.network_, self.site, world, Training(**settings))

    def _learn(self, model: Model, data: Any) -> dict[str, Any]:
        inputs, actions_NT = _checked(data)
        e_BTD = model.run(inputs[:1], self.site)[self.site]
        if e_BTD.dim() != 3:
            raise InputError(f"{self.site} must be (B, T, D), got shape {tuple(e_BTD.shape)}")
        gen = torch.Generator().manual_seed(self.seed)
        self.network_ = MetaNetwork(*self._sizes(e_BTD.shape[-1]), self.seed).to(e_BTD)
        weights = list(self.network_.parameters())
        optimiser = torch.optim.Adam(weights, lr=self.learning_rate)
        for step in track(range(self.num_steps), "training the controller"):
            index = torch.randint(len(inputs), (self.batch_size,), generator=gen)
            given = inputs[index.to(inputs.device)], actions_NT[index.to(actions_NT.device)]
            rate = self.rate * min(1.0, 2 * step / self.num_steps)
            loss = free_energy(model, self.network_, self.site, given, rate, gen)
            # gradients of the controller alone: none is left at the model's weights
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.grad = gradient
            clip_grad_norm_(weights, 1.0)
            optimiser.step()
        return {"sequences": len(inputs), "sha256": digest([inputs, actions_NT])}

    def _act(self, strength: Strength) -> list[Edit]:
        weights = parameters_to_vector(self.network_.parameters()).detach()
        sizes = self._sizes(self.network_.watch.in_features)
        return [Edit(self.site, Recode(weights, sizes, strength=strength))]

    def _sizes(self, width: int) -> tuple[int, int, int, int]:
        return width, self.num_codes, self.rank, self.num_hidden

    def _check_fitted(self) -> None:
        if self.about_ is None:
            raise NotFittedError("MetaController must be fitted before it reads or acts")


def _checked(data: Any) -> tuple[Tensor, Tensor]:
    """Return the sequences' inputs and actions."""
    if not isinstance(data, Mapping) or not {"inputs", "actions"} <= set(data):
        raise InputError(f"data must map inputs and actions to tensors, got {type(data).__name__}")
    inputs, actions_NT = torch.as_tensor(data["inputs"]), torch.as_tensor(data["actions"])
    if actions_NT.dim() != 2 or inputs.shape[:2] != actions_NT.shape or not len(inputs):
        raise InputError(
            f"inputs (N, T, ...) and actions (N, T) must agree and N be at least 1, got "
            f"{tuple(inputs.shape)} and {tuple(actions_NT.shape)}"
        )
    return inputs, actions_NT.long()
