"""Follow the phase change of a training in which in-context learning comes about.

Shapes: B rows, T tokens, S steps of training, N tokens of all rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.opening.checkpoints import Checkpoints
from actkit.trace._base import TrainingAnalysis
from actkit.trace._in_context import icl_score, prefix_scores, token_losses


@dataclass(frozen=True, eq=False)
class PhaseChange:
    """How in-context learning came about in a training.

    Attributes:
        steps_S: The steps at which the network was looked at.
        icl_S: In-context-learning score (nats).
        slope_S: Its derivative by step.
        prefix_S: Prefix matching of the best head.
        path_S2: Each step's losses of all tokens, on their first two principal components.
    """

    steps_S: Tensor
    icl_S: Tensor
    slope_S: Tensor
    prefix_S: Tensor
    path_S2: Tensor

    @property
    def step(self) -> int:
        """Return the step at which the score falls fastest."""
        return int(self.steps_S[self.slope_S.argmin()])


@method(source="Olsson et al. 2022, arXiv:2209.11895, argument 1", interface=TrainingAnalysis)
def phase_change(
    checkpoints: Checkpoints,
    tokens_BT: Tensor,
    repeated_BT: Tensor,
    early: int = 50,
    late: int = 500,
) -> PhaseChange:
    """Follow the in-context-learning score, its derivative and the losses over a training.

    As in the paper, with derivatives by step rather than by the logarithm of tokens seen.

    Args:
        checkpoints: At least three steps of one network.
        tokens_BT: Held-out tokens to predict.
        repeated_BT: As `repeated` gives them, for prefix matching.
        early: Position, as in `icl_score`.
        late: Position, as in `icl_score`.

    Raises:
        InputError: There are fewer steps.

    Example:
        >>> from actkit.worlds import reader
        >>> nets = [reader(at=(0, 0)), reader(at=(0, 1)), reader(at=(0, 2))]  # equally good
        >>> tokens = torch.tensor([[3, 1, 3, 1]])
        >>> phase_change(Checkpoints(nets), tokens, tokens, early=0, late=2).slope_S.tolist()
        [0.0, 0.0, 0.0]
    """

    def look(model: Model) -> tuple[Tensor, float, float]:
        losses = token_losses(model, tokens_BT)
        best = prefix_scores(model, model.run(repeated_BT, record="attn_probs.*")).max()
        return losses.flatten().cpu(), icl_score(losses, early, late), float(best)

    found = checkpoints.over(look)
    if len(found) < 3:
        raise InputError(f"a derivative needs at least 3 checkpoints, got {len(found)}")
    losses, icl, prefix = zip(*found.values(), strict=True)
    steps_S, icl_S = torch.tensor([*found]).double(), torch.tensor(icl).double()
    losses_SN = torch.stack(losses).double()
    u, s, _ = torch.linalg.svd(losses_SN - losses_SN.mean(0), full_matrices=False)
    (slope_S,) = torch.gradient(icl_S, spacing=(steps_S,))
    return PhaseChange(steps_S.long(), icl_S, slope_S, torch.tensor(prefix), (u * s)[:, :2])
