"""What a scan feeds a network: text packed into blocks, photos, or a user's own batches.

Shapes: B images, Y height, X width.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, islice
from typing import Any

import torch
from torch import Tensor, nn

from actkit import data as bundled
from actkit.core.digest import digest
from actkit.core.errors import InputError
from actkit.core.run.chats import leading_ids
from actkit.core.run.inputs import Batch, Call
from actkit.model import Model
from actkit.scanning.format import count

LENGTH = 128
"""Tokens of one block of text, its special tokens included."""
UNITS = {"tokens": "token", "images": "image", "batches": "input"}
"""The kinds of data, and what one of them is called."""


class Feed:
    """Data on their way into a network; after a pass it knows what they were.

    Texts are packed into blocks of tokens without padding, with the special tokens that stand
    around an encoder's text and before a decoder's; 8-bit images go through the network's
    processor, or are scaled as the bundled photos are. Everything else is passed on as it is.

    Args:
        model: The network.
        data: Texts, lists of tokens, images or batches; None for bundled prose or photos.
        num_tokens: How many tokens of text to read at most, special ones not counted.
        batch_size: Images in one batch.

    Attributes:
        kind: "tokens", "images" or "batches".
        sha256: Hash of all that has passed.

    Raises:
        InputError: There is no data, or none that this network takes.
    """

    def __init__(
        self, model: Model, data: Any = None, num_tokens: int = 4096, batch_size: int = 8
    ) -> None:
        """Look at the first sample, to see what the data are."""
        if num_tokens < 1 or batch_size < 1:
            raise InputError(
                f"num_tokens and batch_size must be at least 1, got {num_tokens} and {batch_size}"
            )
        self._model, self._limit, self._batch_size = model, num_tokens, batch_size
        self._source, samples = _bundled(model) if data is None else _given(data)
        items = iter(samples)
        first = next(items, None)
        if first is None:
            raise InputError(f"data must hold at least one sample, got none in {self._source}")
        self.kind = _kind(first)
        self._samples = chain([first], items)
        self._texts = isinstance(first, str)
        self._num, self._passed, self._more, self.sha256 = 0, 0, False, ""

    def __iter__(self) -> Iterator[Any]:
        """Yield samples or batches, once."""
        made = {"tokens": self._blocks, "images": self._images, "batches": self._batches}
        for item in made[self.kind]():
            self.sha256 = digest([self.sha256, item.kwargs if isinstance(item, Batch) else item])
            self._passed += 1
            yield item

    def __str__(self) -> str:
        """Return what has passed, in words."""
        part = "the first" if self._more else "all" if self._num > 1 else "the"
        read = f"{part} {count(self._num, UNITS[self.kind])} of {self._source}"
        if self.kind == "tokens":
            rest = ", the rest was not read" if self._more else ""
            return f"{read} in {count(self._passed, 'sample')}{rest}"
        if self.kind == "images":
            how = "its processor" if self._model.processor else "(x - 127) / 128"
            return f"{read}, scaled by {how}"
        return read

    def reached(self, stacks: Sequence[str]) -> Sequence[str]:
        """Return which of a network's stacks these data reach.

        Text alone does not reach the decoder of an encoder-decoder, nor an image tower.

        Raises:
            InputError: The network needs several kinds of data at once.
        """
        if self.kind == "batches" or len(stacks) == 1:
            return stacks
        for main in ("", "encoder"):
            if main in stacks:
                return (main,)
        raise InputError(
            f"{self._model.name} has the stacks {', '.join(stacks)}, and {self.kind} alone do not "
            "reach them: pass batches as data, dicts of all that it takes"
        )

    def _blocks(self) -> Iterator[list[int]]:
        """Yield token lists, at most the limit in all."""
        start, end = _special(self._model) if self._texts else ([], [])
        for block in self._packed(len(start) + len(end)) if self._texts else self._samples:
            room = self._limit - self._num
            self._more = len(block) > room
            if not room:
                return
            self._num += min(len(block), room)
            yield [*start, *block[:room], *end]

    def _packed(self, num_special: int) -> Iterator[list[int]]:
        if self._model.tokenizer is None:
            raise InputError(
                f"texts need a tokenizer and {self._model.name} has none: "
                "pass tokenizer= to ak.open, or batches as data"
            )
        length = min(LENGTH, self._model.encode.context_length() or LENGTH)
        return bundled.chunks(self._samples, self._model.tokenizer, length - num_special)

    def _images(self) -> Iterator[Any]:
        """Yield batches of images of one size."""
        for _, group in groupby(self._samples, key=lambda image: image.shape):
            while images := list(islice(group, self._batch_size)):
                self._num += len(images)
                if self._model.processor is not None:
                    yield self._model.encode(images)
                else:
                    yield bundled.normalise(torch.stack(images))

    def _batches(self) -> Iterator[Any]:
        for item in self._samples:
            self._num += 1
            yield item


def _bundled(model: Model) -> tuple[str, Iterable[Any]]:
    """Return bundled data that the network takes, and their name."""
    takes = getattr(model.module, "main_input_name", None)
    if model.tokenizer is not None and takes in (None, "input_ids"):
        return "the bundled prose", bundled.text()
    convs = (m for m in model.module.modules() if isinstance(m, nn.Conv2d))
    first = next(convs, None)
    sees = takes == "pixel_values" or (takes is None and first and first.in_channels == 3)
    if not sees:
        raise InputError(
            "without data a scan reads bundled prose, which needs a tokenizer, or bundled photos, "
            f"which need a network that takes images; {model.name} takes {takes or 'neither'}: "
            "pass data"
        )
    size = getattr(getattr(model.module, "config", None), "image_size", None)
    return "the bundled photos", bundled.photos(size if isinstance(size, int) else 224).images


def _given(data: Any) -> tuple[str, Iterable[Any]]:
    """Return a user's data as an iterable, and their name."""
    name = str(getattr(data, "origin", {}).get("source", f"the given {type(data).__name__}"))
    one = isinstance(data, str | Mapping | Batch | Call)
    if one or (isinstance(data, Tensor) and not (data.dim() == 4 and data.dtype == torch.uint8)):
        data = [data]
    if not isinstance(data, Iterable):
        raise InputError(f"data must be an iterable of samples, got {type(data).__name__}")
    return name, data


def _kind(first: Any) -> str:
    if isinstance(first, str) or (isinstance(first, list) and all(type(i) is int for i in first)):
        return "tokens"
    eight_bit = isinstance(first, Tensor) and first.dtype == torch.uint8
    return "images" if eight_bit and first.dim() == 3 and len(first) == 3 else "batches"


def _special(model: Model) -> tuple[list[int], list[int]]:
    """Return what a network was trained to see around a text; nothing ends a decoder's."""
    if model.tokenizer is None:
        return [], []
    if bool(getattr(model.module, "can_generate", lambda: False)()):
        return leading_ids(model.tokenizer), []
    ids = (getattr(model.tokenizer, f"{kind}_token_id", None) for kind in ("cls", "sep"))
    start, end = ([] if i is None else [i] for i in ids)
    return start, end
