"""The information plane: what each layer tells of input and target while a network trains.

Shapes: C checkpoints, L sites, N rows, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.opening.checkpoints import Checkpoints
from actkit.read._base import TrainingStatistic
from actkit.read._estimators import Information, estimator
from actkit.read._sums import usable


@dataclass(frozen=True, slots=True)
class InfoPlane:
    """Trajectories in nats.

    Attributes:
        steps: The C steps of the checkpoints.
        sites: The L sites.
        x_CL: I(T; X).
        y_CL: I(T; Y).
        compression_L: (largest I(T; X) - last I(T; X)) / largest, in [0, 1]; 0 if all are 0.
    """

    steps: tuple[int, ...]
    sites: tuple[str, ...]
    x_CL: Tensor
    y_CL: Tensor
    compression_L: Tensor

    def summary(self) -> dict[str, float]:
        """Return each site's compression."""
        return dict(zip(self.sites, self.compression_L.tolist(), strict=True))


@method(source="Chelombiev et al. 2019, arXiv:1902.09037, section 4", interface=TrainingStatistic)
def info_plane(
    checkpoints: Checkpoints,
    x: Any,
    y: Tensor,
    sites: str | Sequence[str],
    method: str = "ebab",
    **settings: Any,
) -> InfoPlane:
    """Follow I(T; X) and I(T; Y) of layers over training, and score how far they compress.

    As in the paper; the bins or the noise are set anew for each layer at each checkpoint. Where a
    sample has several rows (tokens, places of an image), each row carries its sample's y and the
    first token of a text is left out: its activations are the same in every text.

    Args:
        checkpoints: The network at several steps.
        x: Inputs of `Model.run`, the same at each step.
        y: One label (integer) or value (floating) for each sample, as in `mutual_information`.
        sites: Sites or patterns of layers.
        method: As in `mutual_information`.
        settings: As in `mutual_information`.

    Raises:
        InputError: y does not fit the samples, rows are not finite, or as in
            `mutual_information`.

    Example:
        >>> from torch import nn
        >>> first, last = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(first.weight), nn.init.zeros_(last.weight)
        >>> nets = [nn.Sequential(first), nn.Sequential(last)]
        >>> x = torch.arange(4.0)[:, None]
        >>> plane = info_plane(Checkpoints(nets), x, torch.tensor([0, 0, 1, 1]), "0:out")
        >>> (plane.x_CL / 0.6931).round(decimals=2).tolist(), plane.summary()
        ([[2.0], [0.0]], {'0:out': 1.0})
    """
    see = estimator(method, **settings)

    def read(model: Model) -> dict[str, Information]:
        recording = model.run(x, record=sites)
        found = {}
        for site in recording:
            acts, rows, num_bad = usable(*recording.flat(site), skip_first=True)
            if num_bad:
                raise InputError(f"rows of {site} must be finite, {num_bad} hold NaN or infinity")
            num_samples = int(rows.sample.max()) + 1
            if len(y) != num_samples:
                raise InputError(f"each sample needs its y, got {num_samples} and {len(y)} of y")
            found[site] = see.measure(acts, y[rows.sample])
        return found

    planes = checkpoints.over(read)
    names = tuple(next(iter(planes.values())))
    x_CL, y_CL = (
        torch.tensor([[getattr(p[s], of) for s in names] for p in planes.values()]).double()
        for of in ("x", "y")
    )
    most_L = x_CL.amax(0)
    compression_L = (most_L - x_CL[-1]) / most_L.where(most_L > 0, 1)
    return InfoPlane(tuple(planes), names, x_CL, y_CL, compression_L)
