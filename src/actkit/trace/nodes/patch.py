"""Activation patching: put activations of one run into another, part by part.

Shapes: B pairs, V variants, L layers, T tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit, swap
from actkit.core.errors import InputError
from actkit.core.run.recording import Recording
from actkit.trace._base import Localizer
from actkit.trace._parts import Part, Parts, beside
from actkit.trace._task import Trial


@method(source="Zhang and Nanda 2024, arXiv:2309.16042, section 2")
@dataclass
class Patch(Localizer):
    """Score each part by what patching it alone does to the metric.

    Denoising puts the clean run's activation into the corrupt run, and a score is the share of
    the gap that comes back, (m_patched - m_corrupt) / (m_clean - m_corrupt). Noising puts the
    corrupt activation into the clean run, and a score is the share that is lost. A window patches
    that many layers around each together, which inflates peaks: compare with a window of 1.
    As in the paper; of several pairs the mean over pairs is taken before the ratio.

    Args:
        parts: What is patched: "resid", "attn", "mlp" (layer x position), "heads", "attns",
            "mlps", "neurons", or `Parts`.
        direction: "denoise" or "noise".
        window: How many neighbouring layers are patched together; odd.
        batch: Rows that run at once, as in `m.sweep`.

    Example:
        >>> import torch
        >>> from actkit.model import Model
        >>> from actkit.trace import Task
        >>> from actkit.worlds import reader
        >>> first = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])
        >>> Patch("heads")(Model(reader(at=(1, 1))), first).values
        tensor([[0., 0., 0.],
                [0., 1., 0.]])
    """

    unit: ClassVar[str] = "share of the gap"
    parts: str | Parts = "heads"
    direction: Literal["denoise", "noise"] = "denoise"
    window: int = 1
    batch: int | str = "auto"

    def __post_init__(self) -> None:
        """Refuse unknown directions and windows that have no middle."""
        if self.direction not in ("denoise", "noise"):
            raise InputError(f"direction must be 'denoise' or 'noise', got {self.direction!r}")
        if self.window < 1 or self.window % 2 == 0:
            raise InputError(f"a window must be odd and at least 1, got {self.window}")

    def _score(self, trial: Trial, parts: Parts) -> Tensor:
        source, onto = ("clean", "corrupt") if self.direction == "denoise" else ("corrupt", "clean")
        names = [site.name for site in parts.sites(trial.model)]
        other = trial.source(source, names)
        length = trial.length if "position" in parts.axes else 0
        variants = [
            [_swapped(p, other) for p in beside(part, names, self.window)]
            for part in parts.each(trial.model, length)
        ]
        return trial.recovery(trial.sweep(variants, onto, self.batch), onto)


def _swapped(part: Part, other: Recording) -> Edit:
    return swap(part.site, other, part.where)
