"""Torch's fused attention of `nn.TransformerEncoder`: no hook stands inside it, so it rests.

In evaluation without gradients torch leaves the modules aside and computes a whole layer at once,
padding left out: layers then hand on nested tensors, or their parts never run. A run computes what
the network computes with gradients enabled, whatever is recorded.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_LOCK = threading.Lock()
_USES: list[bool] = []
"""What the switch was when the first of the present users came, once for each of them."""

FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


@contextmanager
def without_fast_path(network: nn.Module) -> Iterator[None]:
    """Let torch's fused attention rest if the network could use it.

    The switch is the process's own; it is put back when the last user leaves, in any order.
    """
    if not any(isinstance(module, FUSED) for module in network.modules()):
        yield
        return
    with _LOCK:
        _USES.append(_USES[0] if _USES else torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        with _LOCK:
            before = _USES.pop()
            if not _USES:
                torch.backends.mha.set_fastpath_enabled(before)
