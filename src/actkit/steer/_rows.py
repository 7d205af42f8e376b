"""How inputs of networks with and without tokens become batches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def as_batch(inputs: Sequence[Any]) -> Any:
    """Return rows of a network without tokens as one tensor, other inputs as a list."""
    rows = isinstance(inputs[0], Tensor) and inputs[0].is_floating_point()
    return torch.stack(list(inputs)) if rows else list(inputs)
