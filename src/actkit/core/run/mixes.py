"""Sees what attention heads make of values, in whatever way a network computes it.

Shapes: B batch, T queries, H heads, S keys, K head width.
"""

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

PRODUCTS = ("matmul", "__matmul__", "bmm")
KERNEL = "scaled_dot_product_attention"


class Mixes(TorchFunctionMode):
    """Sees each head's mix of values wherever a kernel, or a product with weights, makes it."""

    def __init__(self, batch: int) -> None:
        """Watch a run of so many rows; `found` holds (B, H, T, K) tensors in their order."""
        super().__init__()
        self.found: list[Tensor] = []
        self._batch = batch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        product = name in PRODUCTS and len(args) == 2 and _are_weights(*args)
        if isinstance(result, Tensor) and (name == KERNEL or product):
            flat = result.dim() == 3 and len(result) % self._batch == 0
            mix = result.reshape(self._batch, -1, *result.shape[1:]) if flat else result
            if mix.dim() == 4:
                self.found.append(mix.detach().clone())
        return result


def _are_weights(left: Any, right: Any) -> bool:
    """Say whether the left factor holds weights of a softmax: none negative, at most 1 in all."""
    both = isinstance(left, Tensor) and isinstance(right, Tensor)
    if not both or left.dim() != right.dim() or left.dim() < 3 or not left.is_floating_point():
        return False
    return bool((left >= 0).all() and (left.sum(-1) <= 1 + left.shape[-1] * 1e-2).all())
