"""Samples: a stream that can be read again, and that knows what it held.

Shapes: H height, W width.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from itertools import islice
from typing import Any

from actkit.core.errors import DataError


class Samples:
    """A user's data, read anew from its source at every iteration in constant memory.

    A sample is a string, a chat's list of messages, or a (3, H, W) uint8 image. `len()` works
    where the number is known without reading everything: lists, folders of images, Parquet, sized
    Hugging Face datasets.

    Attributes:
        origin: Source and settings, ready for JSON.
    """

    def __init__(
        self, open_: Callable[[], Iterator[Any]], origin: dict[str, Any], limit: int | None
    ) -> None:
        """Hold a function that opens the stream; read its first sample to see that it can."""
        self._open, self.origin, self._limit = open_, origin, limit
        self._hash: str | None = None
        with closing(self._open()) as stream:  # type: ignore[type-var]
            if next(stream, None) is None:
                raise DataError(f"{origin['source']}: data must hold a sample, got none")

    def __iter__(self) -> Iterator[Any]:
        """Read the source from its beginning.

        Raises:
            DataError: a sample cannot be read, or a full pass differs from an earlier one.
        """
        digest = sha256()
        for sample in islice(self._open(), self._limit):
            digest.update(_frame(sample))
            yield sample
        found = digest.hexdigest()
        if self._hash not in (None, found):
            raise DataError(
                f"{self.origin['source']}: data must stay as they are between two passes, "
                f"got SHA-256 {found[:12]} after {str(self._hash)[:12]}"
            )
        self._hash = found

    @property
    def hash(self) -> str:
        """The SHA-256 over all samples in order, the same for the same samples in any format.

        It is computed during the first full iteration; asked for earlier, it reads the source.
        """
        if self._hash is None:
            for _ in self:
                pass
        return str(self._hash)

    def __repr__(self) -> str:
        """Return the source and the settings."""
        settings = ", ".join(f"{k}={v!r}" for k, v in self.origin.items())
        return f"{type(self).__name__}({settings})"


class CountedSamples(Samples):
    """Samples whose number is known before they are read."""

    def __init__(
        self,
        open_: Callable[[], Iterator[Any]],
        origin: dict[str, Any],
        limit: int | None,
        num_samples: int,
    ) -> None:
        """Hold the stream and the number of samples that its source has."""
        super().__init__(open_, origin, limit)
        self._num_samples = num_samples if limit is None else min(limit, num_samples)

    def __len__(self) -> int:
        """Return the number of samples of one iteration."""
        return self._num_samples


def _frame(sample: Any) -> bytes:
    # The length in front keeps ["ab", "c"] and ["a", "bc"] apart.
    if isinstance(sample, str):
        data, kind = sample.encode("utf-8", "surrogatepass"), "text"
    elif isinstance(sample, list):
        data, kind = json.dumps(sample, sort_keys=True, default=str).encode(), "chat"
    else:
        data, kind = sample.numpy().tobytes(), f"image {tuple(sample.shape)}"
    return f"{kind} {len(data)}\n".encode() + data
