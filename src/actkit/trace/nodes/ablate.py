"""Ablation: knock out one part of the clean run and see what the metric loses.

Shapes: B pairs, R reference prompts, T tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import set
from actkit.core.errors import InputError
from actkit.trace._ablations import Prompts, drawn, means, reference_run
from actkit.trace._base import Localizer
from actkit.trace._parts import Parts
from actkit.trace._task import Trial


@method(source="Wang et al. 2022, arXiv:2211.00593, section 2.2")
@dataclass
class Ablate(Localizer):
    """Score each part by the metric that is lost when it alone is knocked out of the clean run.

    The paper knocks out by the mean over prompts in which other names stand: `kind="mean"`. That
    score depends on which prompts are asked together, so the default is to resample, which scores
    each pair by itself.

    Args:
        parts: As in `Patch`: "heads", "attns", "mlps", "resid", "neurons", ... or `Parts`.
        kind: What takes the part's place: "resample", its value on another prompt; "mean", its
            mean over the reference prompts at the same position; "zero".
        reference: Prompts of the task's length to take values from; by default the corrupt ones,
            each for its own clean one.
        seed: Of the rows that are drawn of `reference` to resample from.
        batch: Rows that run at once, as in `m.sweep`.

    Example:
        >>> import torch
        >>> from actkit.model import Model
        >>> from actkit.trace import Task
        >>> from actkit.worlds import reader
        >>> first = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])
        >>> Ablate(kind="zero")(Model(reader(at=(1, 1))), first).values
        tensor([[0., 0., 0.],
                [0., 1., 0.]])
    """

    unit: ClassVar[str] = "metric"
    parts: str | Parts = "heads"
    kind: Literal["resample", "mean", "zero"] = "resample"
    reference: Prompts | None = None
    seed: int = 0
    batch: int | str = "auto"

    def __post_init__(self) -> None:
        """Refuse unknown kinds."""
        if self.kind not in ("resample", "mean", "zero"):
            raise InputError(f"kind must be 'resample', 'mean' or 'zero', got {self.kind!r}")

    def _score(self, trial: Trial, parts: Parts) -> Tensor:
        values = self._values(trial, [site.name for site in parts.sites(trial.model)])
        length = trial.length if "position" in parts.axes else 0
        variants = [[set(p.site, values[p.site], p.where)] for p in parts.each(trial.model, length)]
        return (trial.clean_values - trial.sweep(variants, "clean", self.batch)).mean(-1)

    def _values(self, trial: Trial, names: list[str]) -> Mapping[str, float | Tensor]:
        """Return what takes the place of each site's values."""
        if self.kind == "zero":
            return dict.fromkeys(names, 0.0)
        if self.kind == "mean":
            return means(trial, names, self.reference)
        if self.reference is None:
            return trial.source("corrupt", names)
        return drawn(reference_run(trial, names, self.reference), names, len(trial), self.seed)
