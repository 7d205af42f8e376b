"""Scale the few units that differ most consistently between two sides of examples.

Shapes: N pairs, B batch, D width, H heads, K width of a head, L layers.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit, scale
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.steer._base import ContrastSteerer, Strength
from actkit.steer._examples import Examples
from actkit.steer._states import by_layer, states


def momentum(gains_ND: Tensor) -> Tensor:
    """Return the (D,) share of pairs on the majority's side, with the majority's sign.

    A tie counts as positive; pairs without any difference count for neither side.

    Args:
        gains_ND: Positive less negative activations; further axes are kept.

    Example:
        >>> momentum(torch.tensor([[1.0, -2.0], [3.0, -1.0], [0.5, 1.0], [-1.0, -4.0]])).tolist()
        [0.75, -0.75]
    """
    up_D, down_D = (gains_ND > 0).sum(0), (gains_ND < 0).sum(0)
    return torch.where(up_D >= down_D, up_D, -down_D) / len(gains_ND)


@method(source="Feng et al. 2026, arXiv:2602.04428, and the code")
@dataclass
class AUSteer(ContrastSteerer):
    """Fine-grained steering: scale single units by strength times the consistency of their sign.

    The units of all layers compete; where they are equally consistent, earlier ones win. Every
    token is scaled, in proportion to what is there. As in the paper.

    Args:
        num_units: How many units are scaled in all (>= 1).
        point: What a unit is an entry of: what enters the attention's output map, what the MLP
            puts out, or the stream.

    Attributes:
        betas_: (D,), for `z` (H, K), of each layer with a chosen unit; zero elsewhere.

    Example:
        >>> import actkit as ak
        >>> m = ak.open("smollm2")
        >>> austeer = AUSteer(num_units=5).fit(m, [("I love it", "I hate it"), ("Good", "Bad")])
        >>> sum(int(beta.count_nonzero()) for beta in austeer.betas_.values())
        5
    """

    grid: ClassVar[tuple[float, ...]] = (1.0, 2.0, 4.0, 8.0, 15.0, 25.0)

    num_units: int = 100
    point: Literal["z", "mlp_out", "resid_post"] = "z"
    betas_: dict[int, Tensor] = field(init=False, repr=False, default_factory=dict)

    def _contrast(self, model: Model, examples: Examples) -> None:
        examples.check_paired()
        positive, negative = (
            by_layer(states(model, side, f"{self.point}.*"))
            for side in (examples.positive, examples.negative)
        )
        betas_LD = torch.stack([momentum(positive[n] - negative[n]) for n in positive])
        available = int(betas_LD.count_nonzero())
        if not 1 <= self.num_units <= available:
            raise InputError(
                f"num_units must be 1 to {available}, the units that differ, got {self.num_units}"
            )
        order = betas_LD.flatten().abs().argsort(descending=True, stable=True)
        kept_LD = torch.zeros_like(betas_LD)
        chosen = order[: self.num_units]
        kept_LD.view(-1)[chosen] = betas_LD.view(-1)[chosen]
        self.betas_ = {n: beta for n, beta in zip(positive, kept_LD, strict=True) if beta.any()}

    def _act(self, strength: Strength) -> list[Edit]:
        return [
            scale(f"{self.point}.{layer}", 1 + _by_row(strength, beta) * beta)
            for layer, beta in self.betas_.items()
        ]


def _by_row(strength: Strength, beta: Tensor) -> Strength:
    """Return a number, or (B,) numbers with the axes of the units behind them."""
    if not isinstance(strength, Tensor) or not strength.dim():
        return strength
    return strength.to(beta.device).reshape(-1, *[1] * beta.dim())
