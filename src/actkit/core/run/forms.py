"""The forms that inputs come in: columns, arrays of text, loaders' batches, packed sequences.

Shapes: B batch.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from actkit.core.errors import InputError
from actkit.core.run.chats import is_chat

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
RESCALE = (
    "scale them as the network was trained, `ak.data.normalise(images)` for EfficientNet-lite, "
    "or open it with processor="
)


class LoadedBatch(tuple[Any, ...]):
    """One batch of a `DataLoader`: inputs first, what they are to be told apart by after them."""

    __slots__ = ()


def as_list(inputs: Any) -> Sequence[Any] | None:
    """Return what holds several inputs as a list, None for all else and what is empty.

    Text alone is one input; columns of data frames, arrays of text and tuples of text hold many.

    Raises:
        InputError: A whole data frame, whose columns are not alike, or bytes.
    """
    if isinstance(inputs, str):
        return [inputs]
    if isinstance(inputs, bytes | bytearray | memoryview):  # they would pass for token ids
        raise InputError("a prompt must be text, got bytes: decode them first")
    if _is_frame(inputs):
        raise InputError(
            f"inputs must be one column of a data frame, got all of {list(inputs.columns)}: "
            "pass frame['text']"
        )
    found = _listed(inputs)
    return found if found is not None and len(found) else None


def _is_frame(inputs: Any) -> bool:
    """Say whether inputs are a data frame, of pandas or of polars."""
    return hasattr(inputs, "iterrows") or hasattr(inputs, "iter_rows")


def _listed(inputs: Any) -> Sequence[Any] | None:
    """Return what holds several inputs as a list, None for all else."""
    if isinstance(inputs, np.ndarray):
        holds_text = inputs.dtype.kind in "USTO"
        return list(inputs.reshape(-1).tolist()) if holds_text else None
    if isinstance(inputs, tuple):
        return list(inputs) if _holds_words(inputs) else None
    if callable(to_list := getattr(inputs, "to_list", None)):  # pandas and polars
        return list(to_list())
    return inputs if isinstance(inputs, Sequence) else None


def _holds_words(inputs: tuple[Any, ...]) -> bool:
    """Say whether a tuple holds texts or chats, or is a chat; others are positional inputs."""
    return is_chat(inputs) or all(isinstance(i, str) or is_chat(i) for i in inputs)


def num_rows(values: Sequence[Any]) -> int:
    """Return the number of rows of a call's arguments; 1 if nothing tells it."""
    for value in values:
        if isinstance(value, PackedSequence):
            return int(value.batch_sizes[0])
        if isinstance(value, Tensor):
            return len(value) if value.dim() else 1
        if isinstance(value, Mapping):
            return num_rows(list(value.values()))
    return 1


def on_device(value: Any, device: torch.device) -> Any:
    """Return a tensor, an array, or a mapping of them on a device; what is none stays."""
    if isinstance(value, np.ndarray):
        value = torch.as_tensor(value)
    if isinstance(value, Tensor | PackedSequence):
        return value.to(device)  # type: ignore[arg-type]
    if type(value) is dict:
        return {k: on_device(v, device) for k, v in value.items()}
    return value


def device_of(module: nn.Module) -> torch.device:
    """Return where a network takes its inputs.

    One that accelerate keeps elsewhere has parameters without data, and a hook that says it.
    """
    told = _told_device(module)
    if told is not None:
        return told
    devices = [p.device for p in module.parameters()]
    real = next((d for d in devices if d.type != "meta"), None)
    if real is not None or not devices:
        return real or torch.device("cpu")
    # nothing is here: newer versions leave the whole's hook without a device, its parts' have one
    inside = (d for d in map(_told_device, module.modules()) if d is not None)
    return next(inside, devices[0])


def _told_device(module: nn.Module) -> torch.device | None:
    """Return where accelerate's hook on a module, or one of several joined, says it computes."""
    hook = getattr(module, "_hf_hook", None)
    told = (getattr(each, "execution_device", None) for each in getattr(hook, "hooks", (hook,)))
    return next((torch.device(device) for device in told if device is not None), None)


def without_labels(module: nn.Module, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return those of some positional inputs that a network takes.

    A tuple of the user's is taken as it is if it fits; labels behind what `forward` takes are
    left out. Of a loader's batch only what `forward` requires is taken, since labels would be fed
    to an optional argument without a word.

    Raises:
        InputError: What is left over could be an optional argument, or is not labels.
    """
    names, required = _positional(module)
    if names is None:
        return values
    loaded = isinstance(values, LoadedBatch)
    most = max(1, required) if loaded else len(names)
    if len(values) <= most:
        return values
    if loaded and len(names) > most:
        fits = _are_sure_labels(values, most, required)
    else:
        fits = _have_rows_of(values, values[most:])
    if not fits:
        raise InputError(
            f"a tuple of inputs must fit forward({', '.join(names)}), got {len(values)} values: "
            "say what they are with a dict, or leave out the labels"
        )
    return values[:most]


def _have_rows_of(values: Sequence[Any], rest: Sequence[Any]) -> bool:
    """Say whether each of the rest has as many rows as the inputs."""
    rows = num_rows(values)
    return all(num_rows([r]) == rows for r in rest)


def _are_sure_labels(values: Sequence[Any], most: int, required: int) -> bool:
    """Say whether what a loader gave behind the inputs cannot be an optional argument."""
    if required > 0:
        return False
    rows, rest = num_rows(values), values[most:]
    return _have_rows_of(values, rest) and all(_labels(r, rows) for r in rest)


def _positional(module: nn.Module) -> tuple[list[str] | None, int]:
    """Return the names of forward's positional arguments, None if it takes any, and how many
    it requires.
    """  # noqa: D205
    parameters = inspect.signature(module.forward).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None, 0
    found = [p for p in parameters if p.kind in _POSITIONAL]
    return [p.name for p in found], sum(p.default is p.empty for p in found)


def _labels(value: Any, rows: int) -> bool:
    """Say whether a value holds one number or word for each row."""
    if isinstance(value, Tensor):
        return value.dim() == 1 and len(value) == rows
    return isinstance(value, list | tuple) and len(value) == rows


def first_of_sentences(module: nn.Module) -> Any:
    """Return the first part of a `SentenceTransformer`, which reads tokens; None of all else.

    It is a sequence whose parts pass on one dict of features.
    """
    first = module[0] if isinstance(module, nn.Sequential) and len(module) else None
    reads = hasattr(first, "auto_model") and hasattr(first, "tokenizer")
    return first if reads else None


@contextmanager
def explained(batch: Any) -> Iterator[None]:
    """Say what is wrong with 8-bit images that a network does not take."""
    try:
        yield
    except RuntimeError as error:
        values = (*batch.args, *batch.kwargs.values())
        eight_bit = [v for v in values if isinstance(v, Tensor) and v.dtype == torch.uint8]
        if not eight_bit or eight_bit[0].dim() not in (3, 4):
            raise
        raise unscaled(eight_bit[0]) from error


def unscaled(images: Tensor) -> InputError:
    """Return the error that says what to do with 8-bit images."""
    return InputError(
        f"images must be floating point, got uint8 of shape {tuple(images.shape)}: {RESCALE}"
    )
