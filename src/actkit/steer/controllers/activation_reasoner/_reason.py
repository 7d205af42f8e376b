"""The controller that reads propositions, reasons, and writes what follows.

Shapes: B batch, T tokens, D width, K features in use, C concepts, G targets.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from actkit.core.edits.controller import Controller
from actkit.core.run.context import ForwardContext
from actkit.steer.controllers.activation_reasoner._concepts import Tree, leaf
from actkit.steer.controllers.activation_reasoner._rules import (
    Closure,
    Conjunction,
    Rule,
    closure,
    parsed,
)


@dataclass(frozen=True, eq=False)
class Reason(Controller):
    """Read propositions as tokens pass, reason, and write the targets that hold."""

    identifier: ClassVar[str] = "activation_reasoner.reason"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer._reason:Reason",)
    encoder_KD: Tensor
    bias_K: Tensor
    weights_CK: Tensor
    directions_GD: Tensor
    concepts: tuple[str, ...]
    trees: tuple[Tree, ...]
    cuts: tuple[float, ...]
    sureness: tuple[float, ...]
    rules: tuple[str, ...]
    targets: tuple[str, ...]
    conjunction: Conjunction = "min"

    def act(self, x: Tensor, memory: dict[str, Any], context: ForwardContext) -> Tensor:
        """Return x + alpha sum of the directions of the targets that hold so far."""
        shape = x.shape[:2]
        active_BC = self.active(x, context.validity(*shape), context.positions(*shape)).any(1)
        active_BC = memory["seen"] = memory.get("seen", False) | active_BC
        held = [self.closure(active_C).confidence for active_C in active_BC]
        holds_BG = x.new_tensor([[name in own for name in self.targets] for own in held])
        return x + self.dose(x) * (holds_BG @ self.directions_GD)[:, None]

    def active(self, x_BTD: Tensor, valid_BT: Tensor, position_BT: Tensor) -> Tensor:
        """Return which concepts hold at each token, (B, T, C) bool; none at the first."""
        acts_BTK = torch.relu(linear(x_BTD, self.encoder_KD, self.bias_K))
        sums_BTC = acts_BTK @ self.weights_CK.T
        scores = [
            leaf(tree, acts_BTK) if tree else sums_BTC[..., i] for i, tree in enumerate(self.trees)
        ]
        above_BTC = torch.stack(scores, -1) > sums_BTC.new_tensor(self.cuts)
        return above_BTC & (valid_BT & (position_BT > 0))[..., None]

    def closure(self, active_C: Tensor) -> Closure:
        """Return what follows where these concepts hold."""
        held = active_C.nonzero()[:, 0].tolist()
        facts = {self.concepts[i]: self.sureness[i] for i in held}
        return closure(self._parsed, facts, self.conjunction)

    @cached_property
    def _parsed(self) -> list[Rule]:
        return [parsed(text) for text in self.rules]
