"""From what users give to what a network takes: text, chats, tokens, batches, arrays, calls.

Shapes: B batch, T tokens.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from actkit.core.errors import InputError
from actkit.core.run.chats import is_chat, rendered, token_ids
from actkit.core.run.forms import (
    LoadedBatch,
    as_list,
    device_of,
    num_rows,
    on_device,
    unscaled,
    without_labels,
)
from actkit.core.run.padding import REFUSALS
from actkit.core.run.tokens import TokenCalls


@dataclass(frozen=True)
class Batch:
    """Arguments of one call of a network, with what is known of its tokens.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        tokens: (B, T) token ids, None if the inputs are no tokens.
        valid: (B, T) bool, False on padding, counted as the inputs are (tokens, or samples of
            sound); None if nothing is padded.
        past: (B, P) validity of the tokens that a cache among the arguments holds; None if there
            is no cache, or nothing is known of it.
        padding: "left" or "right" where rows were padded here; "alone" where they were, but no
            padding is exact, so that rows must run one by one (see `Encoder.split`); "" for what
            needed no padding, or came with a mask of its own.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    tokens: Tensor | None = None
    valid: Tensor | None = None
    past: Tensor | None = None
    padding: str = ""

    @property
    def num_samples(self) -> int:
        """Return the length of the first tensor; 1 if there is none."""
        return num_rows((*self.args, *self.kwargs.values()))


class Call:
    """Positional and keyword inputs of any network: `m.run(ak.Call(x, scale=2.0), ...)`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Keep the arguments."""
        self.args, self.kwargs = args, kwargs


class Encoder:
    """Turns inputs into batches for one network.

    Args:
        module: The network.
        tokenizer: Needed for text.
        processor: Needed for images and sound.

    Attributes:
        template: Settings of the chat template for every conversation, such as
            `{"enable_thinking": False}`; those of a call come on top.
    """

    def __init__(self, module: nn.Module, tokenizer: Any, processor: Any) -> None:
        """Keep what is needed to encode."""
        self._module, self._tokenizer, self._processor = module, tokenizer, processor
        self._calls = TokenCalls(module, tokenizer)
        self.template: dict[str, Any] = {}

    def __call__(self, inputs: Any, template: Mapping[str, Any] | None = None) -> Batch:
        """Return the batch; the inputs themselves stay as they are.

        Args:
            inputs: As in `Model.run`.
            template: Settings of the chat template for these conversations.
        """
        template = template or {}
        if isinstance(inputs, Batch):
            return inputs
        if isinstance(inputs, Call):
            return self._given(inputs.args, inputs.kwargs)
        if isinstance(inputs, PackedSequence):
            return self._given((inputs,), {})
        if isinstance(inputs, LoadedBatch):
            return self._loaded(inputs)
        listed = as_list(inputs)
        if listed is not None:
            return self._several(listed, template)
        if isinstance(inputs, tuple):
            return self._given(without_labels(self._module, inputs), {})
        if isinstance(inputs, Mapping):
            return self._mapping(inputs, template)
        if isinstance(inputs, Tensor | np.ndarray):
            return self._array(torch.as_tensor(inputs))
        kind = type(inputs).__name__
        raise InputError(
            f"inputs must be text, tokens, arrays or a batch and not empty, got {kind}"
        )

    @property
    def note(self) -> str:
        """Return why ragged batches run row by row; empty if they do not, or before the first."""
        return self._calls.note

    @property
    def padding(self) -> str:
        """Return how ragged batches of tokens run: padded "left", padded "right", or "alone".

        It is proven on the network the first time that it is asked (see `actkit.core.run.padding`),
        two or three runs of eight tokens, and holds from then on.
        """
        return self._calls.verdict.side

    def split(self, batch: Batch, writes: bool = False) -> list[Batch]:
        """Return what may run at once: the batch itself, or each row alone, without padding.

        Batches that came with a mask of their own are taken as they are.

        Args:
            batch: Of this encoder.
            writes: The network goes on writing behind the rows, so that a decoder's rows may not
                be padded there, and on no side if its loop drops the mask.
        """
        behind = writes and not self._calls.encoder_decoder and bool(batch.padding)
        behind = behind and (batch.padding == "right" or _loop_drops_mask(self._module, batch))
        if batch.tokens is None or batch.valid is None or not (batch.padding == "alone" or behind):
            return [batch]
        rows = zip(batch.tokens, batch.valid, strict=True)
        return [self._rows([tokens[valid].tolist()], "left") for tokens, valid in rows]

    def text(self, texts: Sequence[str], special: bool = True) -> Batch:
        """Encode texts, padded where the network can take it (`padding`).

        Decoders are padded on the left, so that position -1 is each row's last token; networks
        that read both ways and encoder-decoders on the right, since their first token, which may
        stand for the text, must stay first.
        """
        if self._tokenizer is None:
            raise InputError(
                "text needs a tokenizer and this network has none: "
                "pass tokenizer= to ak.open, or give token ids"
            )
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"a prompt must be text, got {text!r} at index {i}")
            if not text:
                raise InputError(f"a prompt must not be empty, got {text!r} at index {i}")
        rows = [token_ids(self._tokenizer, t, special) for t in texts]
        for i, row in enumerate(rows):
            if not row:
                raise InputError(f"a prompt must have a token, got {texts[i]!r} at index {i}")
        return self._tokens(rows)

    def _loaded(self, values: LoadedBatch) -> Batch:
        """Take what a network takes of a loader's batch: its inputs, and not their labels."""
        first, *_ = values
        if isinstance(first, Tensor):
            taken = without_labels(self._module, values)
            return self._array(first) if len(taken) == 1 else self._given(taken, {})
        return self(first if not isinstance(first, str) else list(values))

    def _mapping(self, inputs: Mapping[str, Any], template: Mapping[str, Any]) -> Batch:
        if is_chat(inputs.get("messages")):
            return self._chats([inputs["messages"]], template)
        return self._given((), dict(inputs))

    def _several(self, inputs: Sequence[Any], template: Mapping[str, Any]) -> Batch:
        first = inputs[0]
        if any(isinstance(i, str) for i in inputs):
            return self.text(list(inputs))
        if isinstance(first, Mapping):
            is_wrapped = is_chat(first.get("messages"))
            chats = [i["messages"] for i in inputs] if is_wrapped else [inputs]
            return self._chats(chats, template)
        if isinstance(first, int):
            return self._tokens([list(inputs)])
        if isinstance(first, list | tuple):
            return self._nested(inputs, template)
        if isinstance(first, Tensor | np.ndarray) and np.ndim(first) == 1:
            return self._rows_of_arrays(inputs)
        return self._media(inputs)

    def _nested(self, inputs: Sequence[Any], template: Mapping[str, Any]) -> Batch:
        """Encode lists in a list: conversations, or rows of token ids."""
        first = inputs[0]
        if first and isinstance(first[0], Mapping):
            return self._chats(inputs, template)
        if all(isinstance(t, int) for i in inputs for t in i):
            return self._tokens([list(i) for i in inputs])
        return self._media(inputs)

    def _rows_of_arrays(self, inputs: Sequence[Any]) -> Batch:
        """Encode arrays of one axis: token ids if they are whole numbers, else sounds."""
        rows = [torch.as_tensor(i) for i in inputs]
        if any(r.is_floating_point() for r in rows):
            return self._media(inputs)
        return self._tokens([r.tolist() for r in rows])

    def _chats(self, chats: Sequence[Any], template: Mapping[str, Any]) -> Batch:
        for i, chat in enumerate(chats):
            if not is_chat(chat):
                shown = list(chat[0]) if isinstance(chat[0], Mapping) else type(chat[0]).__name__
                raise InputError(
                    f"a list of dicts must be messages with role and content, got {shown} "
                    f"in conversation {i}; give batches one by one"
                )
        settings = {**self.template, **template}
        return self.text([rendered(self._tokenizer, c, settings) for c in chats], special=False)

    def _media(self, inputs: Sequence[Any]) -> Batch:
        """Encode images or sounds with the processor; without one, stack arrays of one shape."""
        if self._processor is not None:
            sees = "pixel_values" in inspect.signature(self._module.forward).parameters
            fed: dict[str, Any] = {"images" if sees else "audio": list(inputs)}
            silence = {} if sees else self._sound_mask()
            return self._given((), dict(self._processor(**fed, return_tensors="pt", **silence)))
        if not all(isinstance(i, Tensor | np.ndarray) for i in inputs):
            raise InputError(
                f"a list of {type(inputs[0]).__name__} needs a processor and there is none: "
                "pass processor= to ak.open, or give a tensor"
            )
        shapes = {tuple(i.shape) for i in inputs}
        if len(shapes) > 1:
            raise InputError(f"arrays of one batch must have one shape, got {sorted(shapes)}")
        return self._array(torch.stack([torch.as_tensor(i) for i in inputs]))

    def _sound_mask(self) -> dict[str, bool]:
        """Return what asks the processor for the mask of silence behind a sound.

        Whisper's extractor pads to 30 seconds without a word. Only a mask that is asked for in the
        call is counted in columns of the spectrogram, as the features are, and not in samples.
        Networks that read the waveform compute otherwise with a mask, so it is left to them.
        """
        extractor = getattr(self._processor, "feature_extractor", self._processor)
        spectral = "input_features" in getattr(extractor, "model_input_names", ())
        return {"return_attention_mask": True} if spectral else {}

    def _array(self, array: Tensor) -> Batch:
        self._check_array(array)
        name = getattr(self._calls.inner, "main_input_name", None)
        is_whole = not array.is_floating_point()
        if name == "input_ids" and is_whole and array.dim() in (1, 2):
            ids = torch.atleast_2d(array).long()  # type: ignore[no-untyped-call]
            return self._given((), {"input_ids": ids})
        if array.dtype == torch.uint8:
            if array.dim() == 4 and self._processor is not None:
                return self._media(list(array))
            if name == "pixel_values":  # it would be cast, not scaled
                raise unscaled(array)
        if name is None or name == "input_ids":
            return self._given((array,), {})
        return self._given((), {name: array})

    def _check_array(self, array: Tensor) -> None:
        """Refuse an array that is empty, or real numbers where ids are read."""
        if not array.numel():
            raise InputError(f"inputs must not be empty, got shape {tuple(array.shape)}")
        if self._calls.reads_ids and array.is_floating_point():
            raise InputError(
                f"token ids must be whole numbers, got {array.dtype} of shape "
                f"{tuple(array.shape)}: give embeddings as {{'inputs_embeds': ...}}"
            )

    def _tokens(self, rows: list[list[int]]) -> Batch:
        """Put rows of token ids into one batch, padded where they differ in length."""
        lengths = [len(row) for row in rows]
        if not all(lengths):
            raise InputError(f"a prompt must have a token, got lengths {lengths}")
        self._calls.check(max(lengths), min(map(min, rows)), max(map(max, rows)))
        if len({*lengths}) == 1:
            return self._rows(rows, "left")
        verdict = self._calls.verdict_for(rows)
        return replace(self._rows(rows, verdict.usual), padding=verdict.side)

    def _rows(self, rows: Sequence[Sequence[int]], side: str) -> Batch:
        """Return a batch of rows of tokens that is padded on a side."""
        ids, mask = self._calls.padded(rows, side)
        args, kwargs = self._calls.arguments(rows, side)
        return Batch(args, kwargs, ids, mask.bool())

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Batch:
        """Check what can be checked, and move arguments to the network's device."""
        ids = kwargs.get("input_ids")
        ids = torch.as_tensor(ids) if isinstance(ids, np.ndarray) else ids
        known = ids if isinstance(ids, Tensor) and ids.dim() == 2 else None
        if known is not None:
            self._check_ids(known)
        device = device_of(self._module)
        args = tuple(on_device(a, device) for a in args)
        kwargs = {k: on_device(v, device) for k, v in kwargs.items()}
        mask = kwargs.get("attention_mask")
        valid = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None
        if known is None:
            return Batch(args, kwargs, None, valid)
        tokens = kwargs["input_ids"]
        past, valid = _parted(valid, tokens)
        return Batch(args, kwargs, tokens, valid, past)

    def _check_ids(self, ids: Tensor) -> None:
        """Refuse (B, T) ids without a token, or that the network does not know."""
        if not ids.numel():
            raise InputError(f"a prompt must have a token, got shape {tuple(ids.shape)}")
        self._calls.check(ids.shape[1], int(ids.min()), int(ids.max()))

    def context_length(self) -> int | None:
        """Return how many tokens fit; None where positions are relative or not used."""
        return self._calls.context_length()


def _parted(valid: Tensor | None, tokens: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the validity of what a cache holds and that of the tokens, None where unknown."""
    if valid is None:
        return None, None
    past, num_tokens = None, tokens.shape[1]
    if valid.shape[1] > num_tokens:  # a cache holds the first columns
        past, valid = valid[:, :-num_tokens], valid[:, -num_tokens:]
    return past, valid if valid.shape == tokens.shape else None


def _loop_drops_mask(module: nn.Module, batch: Batch) -> bool:
    """Say whether a network's own loop hands on no mask of padded rows, as XLM's does not."""
    prepare = getattr(module, "prepare_inputs_for_generation", None)
    mask = batch.kwargs.get("attention_mask")
    if prepare is None or mask is None or batch.valid is None or bool(batch.valid.all()):
        return False
    try:
        handed = prepare(batch.tokens, attention_mask=mask, is_first_iteration=True)
    except REFUSALS:  # it needs more than that, and says nothing of masks
        return False
    return isinstance(handed, Mapping) and handed.get("attention_mask") is None
