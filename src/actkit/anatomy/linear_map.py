"""The weight and bias of a linear map, whichever way round it keeps them.

Shapes: I inputs of a map, D outputs, N rows.
"""

from torch import Tensor, nn

from actkit.core.errors import InputError


def is_turned(module: nn.Module) -> bool:
    """Say whether a module is transformers' Conv1D (of GPT-2), which keeps its weight as (I, D)."""
    return type(module).__name__ == "Conv1D" and not isinstance(module, nn.Conv1d)


def is_linear(module: nn.Module) -> bool:
    """Say whether a module is a linear map whose weight can be read: a Linear or a Conv1D.

    Adapters around a map are none, since their weight is not all of what the map does.
    """
    return isinstance(module, nn.Linear) or is_turned(module)


def weight_of(module: nn.Module) -> Tensor:
    """Return the (D, I) weight W of a map y = W x + b, in its own dtype.

    It is a detached view: what is written into it changes the map.

    Raises:
        InputError: The module is no plain linear map.

    Example:
        >>> weight_of(nn.Linear(3, 2)).shape
        torch.Size([2, 3])
    """
    weight = getattr(module, "weight", None)
    if not is_linear(module) or not isinstance(weight, Tensor):
        raise InputError(
            "a weight is read of a plain linear map (merge adapters first), got a "
            f"{type(module).__name__}"
        )
    return weight.detach().mT if is_turned(module) else weight.detach()


def bias_of(module: nn.Module) -> Tensor | None:
    """Return the (D,) bias of a map, detached and in its own dtype; None where it has none."""
    bias = getattr(module, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None
