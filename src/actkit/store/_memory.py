"""Memory that is used again.

Shapes: N rows.
"""

import weakref
from collections import defaultdict, deque

import numpy as np
from numpy.typing import NDArray

KEPT = 3
"""Pieces of one size that are kept for the next use."""


class Memory:
    """Gives out arrays, and gives their memory out again when nobody holds it any more.

    The system maps and zeroes fresh memory page by page, which takes as long as filling it.

    Example:
        >>> import torch
        >>> memory = Memory()
        >>> first = memory.take(4, 2)
        >>> place = first.ctypes.data
        >>> tensor = torch.from_numpy(first)[1:]
        >>> del first
        >>> memory.take(4, 2).ctypes.data == place  # the tensor still holds it
        False
        >>> del tensor
        >>> memory.take(4, 2).ctypes.data == place
        True
    """

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._free: defaultdict[tuple[int, int], deque[NDArray[np.uint8]]] = defaultdict(
            lambda: deque(maxlen=KEPT)
        )

    def take(self, rows: int, width: int) -> NDArray[np.uint8]:
        """Return an (N, width) array with anything in it."""
        free = self._free[rows, width]
        piece = free.pop() if free else np.empty((rows, width), np.uint8)
        held = piece.view()
        # Whatever is made of the view holds it, so it dies when the last of them dies.
        weakref.finalize(held, free.append, piece).atexit = False
        return held
