"""Head importance: the size of each part's first-order effect, prompt by prompt.

Shapes: B pairs, L layers.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.trace._base import Localizer
from actkit.trace._gradients import first_order
from actkit.trace._parts import Parts
from actkit.trace._task import Trial


@method(source="Michel et al. 2019; with corrupt prompts Conmy et al. 2023, arXiv:2304.14997")
@dataclass
class HeadImportance(Localizer):
    """Score each part by mean_x |(a(x) - a(x')) . dM/da(x)|, relative to its layer.

    The gradient is that at the clean prompt x; x' is the corrupt one. The size is taken in each
    pair, so that effects of different sign do not cancel: scores have none, unlike those of
    attribution patching. As in the papers, which divide by the layer's l2 norm.

    Args:
        parts: What is scored: "heads", "mlps", "neurons", ... or `Parts`.
        by_layer: Divide a layer's scores by their l2 norm (1 is left where a layer is one part);
            otherwise scores are shares of the gap.

    Example:
        >>> import torch
        >>> from actkit.model import Model
        >>> from actkit.trace import Task
        >>> from actkit.worlds import reader
        >>> first = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])
        >>> HeadImportance()(Model(reader(at=(1, 1))), first).values
        tensor([[0., 0., 0.],
                [0., 1., 0.]])
    """

    unit: ClassVar[str] = "size, relative to the layer or to the gap"
    parts: str | Parts = "heads"
    by_layer: bool = True

    def _score(self, trial: Trial, parts: Parts) -> Tensor:
        names = [site.name for site in parts.sites(trial.model)]
        layers = first_order(trial, "noise", names)
        sizes = torch.stack(
            [
                torch.stack([parts.summed(pair[None]).abs() for pair in layer]).mean(0)
                for layer in layers
            ]
        )
        if not self.by_layer:
            return sizes
        by_layer = sizes.reshape(len(sizes), -1)
        norm = by_layer.norm(dim=1, keepdim=True)
        return by_layer / torch.where(norm > 0, norm, 1)
