"""What data and edits are, as one hash: the same for equal content, whatever objects hold it."""

import hashlib
import pickle
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor


def digest(value: Any) -> str:
    """Return the SHA-256 of nested plain data, tensors, arrays and objects, in hexadecimal.

    Functions count by their name. Dictionaries count in their order.

    Example:
        >>> digest(["ab", "c"]) == digest(("ab", "c"))
        True
        >>> digest(["ab", "c"]) == digest(["a", "bc"])
        False
    """
    return hashlib.sha256(_frame(value)).hexdigest()


def _frame(value: Any) -> bytes:
    kind, data = _content(value)
    # The length in front keeps neighbours apart.
    return f"{kind} {len(data)}\n".encode() + data


def _content(value: Any) -> tuple[str, bytes]:
    if isinstance(value, str):
        return "text", value.encode("utf-8", "surrogatepass")
    if isinstance(value, Tensor | np.ndarray):
        return _array(value)
    if isinstance(value, Mapping):
        return "mapping", b"".join(_frame(k) + _frame(v) for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return "sequence", b"".join(map(_frame, value))
    if isinstance(value, Set):
        return "set", b"".join(sorted(map(_frame, value)))
    if callable(value) and hasattr(value, "__qualname__"):
        return "function", f"{value.__module__}.{value.__qualname__}".encode()
    if hasattr(value, "__dataclass_fields__"):
        names = value.__dataclass_fields__
        return type(value).__name__, _frame({name: getattr(value, name) for name in names})
    return "object", pickle.dumps(value, protocol=4)


def _array(x: Tensor | np.ndarray) -> tuple[str, bytes]:
    if isinstance(x, np.ndarray):
        return f"array {x.dtype} {x.shape}", np.ascontiguousarray(x).tobytes()
    return _tensor(x.detach().cpu().contiguous())


def _tensor(x: Tensor) -> tuple[str, bytes]:
    flat = x.reshape(-1).view(torch.uint8) if x.numel() else x.new_empty(0, dtype=torch.uint8)
    return f"array {x.dtype} {tuple(x.shape)}", flat.numpy().tobytes()
