"""What autograd keeps for the backward pass: the meter, and the socket for policies.

A policy of the family `tune` is a pair of functions, `pack` and `unpack`, that stand between
autograd and what it saves; the meter is the policy that changes nothing and counts.
"""

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn


class SavedMeter:
    """Counts the bytes that a forward pass saves for its backward pass.

    A storage that is saved several times counts once, and parameters and buffers of `module`
    count nothing, since they are kept anyway.

    Attributes:
        num_bytes: Bytes saved so far.

    Example:
        >>> x = torch.ones(5, 3, requires_grad=True)
        >>> with SavedMeter() as meter:
        ...     y = (x * 2).exp()
        >>> meter.num_bytes  # exp saves its (5, 3) float32 result
        60
    """

    def __init__(self, module: nn.Module | None = None) -> None:
        """Leave out what belongs to `module`."""
        owned = [] if module is None else [*module.parameters(), *module.buffers()]
        self._known = {t.untyped_storage().data_ptr() for t in owned}
        self._kept: list[Tensor] = []
        self.num_bytes = 0

    def __enter__(self) -> Self:
        """Start to count."""
        self._hooks: Any = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop to count."""
        self._hooks.__exit__(kind, error, trace)
        self._kept.clear()

    def _pack(self, tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in self._known:
            self._known.add(address)
            self._kept.append(tensor.detach())  # so that no other storage takes this address
            self.num_bytes += tensor.untyped_storage().nbytes()
        return tensor.detach()  # the tensor itself may own the graph that now keeps it
