"""Which linear region each input falls in: a network's binary activation pattern as a hash code.

Shapes: N rows, D width of the input, U units, K points.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.read._base import ModelStatistic
from actkit.read.codes._patterns import NeuralCode, read_code


@method(source="He et al. 2021, arXiv:2101.05490, section 3", interface=ModelStatistic)
def neural_code(
    model: Model, data: Any, sites: str | Sequence[str] | None = None, batch_size: int = 256
) -> NeuralCode:
    """Return the binary activation pattern of every sample: which of its ReLU units are on.

    As in the paper. The code says what can be asked of it: `redundancy`, `cluster_accuracy`
    (K-means and the Hungarian algorithm), `knn_accuracy` (9 neighbours, Hamming) and
    `logreg_accuracy` (one-versus-one). Wide untrained networks have codes that tell rows apart
    and classify nearly as well, and whether training helps K-means depends on the scale of the
    inputs, so no figure says anything without the untrained network's beside it;
    `hash_phase_chart` always measures both.

    Args:
        model: The network.
        data: A tensor of samples (N, ...), or what `Model.observe` takes.
        sites: Where the units are, before or after their nonlinearity; None for the inputs of all
            modules like ReLU. Functional ones have no module and must be named by what they
            read: `mlp_pre.*`, or `mlp_gate.*` in a gated MLP. Of a text every token is a row, of
            other data every sample.
        batch_size: Samples at a time.

    Raises:
        InputError: No module is like a ReLU, there are no data, or a value is NaN.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.eye(2)), layer.bias.data.zero_()
        >>> model = Model(torch.nn.Sequential(layer, torch.nn.ReLU()))
        >>> code = neural_code(model, torch.tensor([[1.0, -1.0], [2.0, -3.0], [1.0, 1.0]]))
        >>> code.bits().int().tolist(), round(code.redundancy(), 3)
        ([[1, 0], [1, 0], [1, 1]], 0.333)
    """
    return read_code(model, data, sites, batch_size)


def regions_crossed(
    model: Model,
    start: Tensor,
    end: Tensor,
    sites: str | Sequence[str] | None = None,
    num_points: int = 1000,
) -> int:
    """Return how many borders between linear regions the segment between two inputs crosses.

    Bits that flip from one of `num_points` points to the next are counted. A unit that flips
    twice between two points is missed, so this is a lower bound; for one hidden layer, where a
    unit flips at most once, it is exact.

    Args:
        model: The network.
        start: One input, without a batch axis.
        end: Another of the same shape.
        sites: As in `neural_code`.
        num_points: Points on the segment, ends included (>= 2).
    """
    if start.shape != end.shape or num_points < 2:
        raise InputError(
            f"a segment needs two inputs of one shape and at least 2 points, got "
            f"{tuple(start.shape)}, {tuple(end.shape)} and {num_points}"
        )
    at_K = torch.linspace(0, 1, num_points, dtype=start.dtype, device=start.device)
    at_K = at_K.reshape(-1, *[1] * start.dim())
    code = neural_code(model, start + at_K * (end - start), sites)
    return int(code[1:].flips(code[:-1]).sum())
