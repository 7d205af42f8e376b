"""How massive activations grow over training: one curve of five numbers for each layer.

Shapes: C checkpoints, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.opening.checkpoints import Checkpoints
from actkit.read._base import TrainingStatistic
from actkit.read.training._massive_curve import MassiveCurve, fit_curve


@dataclass(frozen=True, slots=True)
class MassiveDynamics:
    """What was measured at each checkpoint, and the curves through it.

    Attributes:
        steps_C: (C,) int64 training steps.
        ratios: For each site the (C,) float64 ratios: largest / median magnitude of a text,
            mean over texts.
        curves: For each site the fitted curve.
    """

    steps_C: Tensor
    ratios: dict[str, Tensor]
    curves: dict[str, MassiveCurve]


@method(source="Gallego-Feliciano et al. 2025, arXiv:2508.03616", interface=TrainingStatistic)
def massive_dynamics(
    checkpoints: Checkpoints,
    texts: Sequence[Any],
    sites: str | Sequence[str] = "resid_post.*",
    seed: int = 0,
) -> MassiveDynamics:
    """Measure max |h| / median |h| at every checkpoint and fit each site's curve over training.

    As in the paper: f(t) = A exp(-lam x) log(x) + K with x = gamma t + t0. A layer has an "early
    peak" if the curve falls before the last checkpoint, else a "log increase". The ratio is of
    one text with all its tokens, the first one too: it is where massive activations live.

    Args:
        checkpoints: At least 6 of them.
        texts: About 10 texts (or other inputs of `Model.run`), which all checkpoints read.
        sites: Where to read.
        seed: Of the fit's starts.

    Raises:
        InputError: There are too few checkpoints or no texts, an activation is not finite, or
            sites or widths differ between checkpoints.

    Example:
        >>> def grown(size):
        ...     layer = torch.nn.Linear(3, 3, bias=False)
        ...     layer.weight.data = torch.tensor([1.0, 1.0, size]).diag()
        ...     return torch.nn.Sequential(layer)
        >>> nets = [grown(size) for size in (4.0, 7.0, 9.0, 10.0, 11.0, 12.0)]
        >>> found = massive_dynamics(Checkpoints(nets), [torch.ones(1, 3)], "0:out")
        >>> found.ratios["0:out"].tolist(), found.curves["0:out"].kind
        ([4.0, 7.0, 9.0, 10.0, 11.0, 12.0], 'log increase')
    """
    measured = checkpoints.over(lambda model: _ratios(model, texts, sites))
    (first, found), *others = measured.items()
    for step, other in others:
        if other.keys() != found.keys() or any(other[s][1] != found[s][1] for s in found):
            shapes = [{site: width for site, (_, width) in m.items()} for m in (found, other)]
            raise InputError(
                "checkpoints of one training share sites and widths, got "
                f"{shapes[0]} at step {first} and {shapes[1]} at step {step}"
            )
    steps_C = torch.tensor(list(measured))
    ratios = {s: torch.tensor([m[s][0] for m in measured.values()]).double() for s in found}
    curves = {site: fit_curve(steps_C, ratios_C, seed) for site, ratios_C in ratios.items()}
    return MassiveDynamics(steps_C, ratios, curves)


def massive_ratios(
    model: Model, texts: Sequence[Any], sites: str | Sequence[str] = "resid_post.*"
) -> dict[str, float]:
    """Return for each site the largest / median magnitude of a text, mean over the texts.

    Raises:
        InputError: There are no texts, or an activation is not finite.
    """
    return {site: ratio for site, (ratio, _) in _ratios(model, texts, sites).items()}


def _ratios(
    model: Model, texts: Sequence[Any], sites: str | Sequence[str]
) -> dict[str, tuple[float, int]]:
    """Return ratio and width of each site."""
    if isinstance(texts, str) or not len(texts):
        raise InputError(f"need a list of at least one text, got {texts!r}")
    totals: dict[str, float] = {}
    widths: dict[str, int] = {}
    for text in texts:
        rec = model.run(text, record=sites)
        for site in rec:
            size_ND = rec.flat(site)[0].abs().double().cpu().numpy()
            if num_bad := size_ND.size - int(np.isfinite(size_ND).sum()):
                raise InputError(f"activations must be finite, got {num_bad} others at {site}")
            totals[site] = totals.get(site, 0) + float(size_ND.max() / np.median(size_ND))
            widths[site] = size_ND.shape[-1]
    return {site: (total / len(texts), widths[site]) for site, total in totals.items()}
