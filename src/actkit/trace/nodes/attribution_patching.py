"""Attribution patching: activation patching of all parts at once, to first order.

Shapes: B pairs, T tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from actkit.catalog import method
from actkit.trace._base import Localizer
from actkit.trace._gradients import first_order, sides
from actkit.trace._parts import Parts
from actkit.trace._task import Trial


@method(source="Nanda 2023; Syed et al. 2023, arXiv:2310.10348, section 3")
@dataclass
class AttributionPatching(Localizer):
    """Score each part by the first-order effect of patching it, (a_clean - a_corrupt) dM/da.

    Two forward passes and one backward pass score every part of the network. The gradient is taken
    in the run that would be patched: the corrupt one to denoise, the clean one to noise. Scores
    are shares of the gap, as those of patching, which they approximate: exact where the network is
    linear between the two activations, and blind where it is saturated (queries and keys of a
    sharp attention head have no gradient; `AtPStar` corrects this).
    Differs from the paper, whose metrics are not divided by the gap.

    Args:
        parts: What is scored: "resid", "attn", "mlp" (layer x position), "heads", "attns",
            "mlps", "neurons", or `Parts`.
        direction: "denoise" or "noise".

    Example:
        >>> import torch
        >>> from actkit.model import Model
        >>> from actkit.trace import Task
        >>> from actkit.worlds import reader
        >>> first = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])
        >>> AttributionPatching("heads")(Model(reader(at=(1, 1))), first).values
        tensor([[0., 0., 0.],
                [0., 1., 0.]])
    """

    unit: ClassVar[str] = "share of the gap"
    parts: str | Parts = "heads"
    direction: Literal["denoise", "noise"] = "denoise"

    def __post_init__(self) -> None:
        """Refuse unknown directions."""
        sides(self.direction)

    def _score(self, trial: Trial, parts: Parts) -> list[Tensor]:
        names = [site.name for site in parts.sites(trial.model)]
        return [parts.summed(x) for x in first_order(trial, self.direction, names)]
