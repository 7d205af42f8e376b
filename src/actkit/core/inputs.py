"""From what users give to what a network takes: text, chats, tokens, batches, arrays, calls.

Shapes: B batch, T tokens.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actkit.core.errors import InputError

_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx")


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
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    tokens: Tensor | None = None
    valid: Tensor | None = None
    past: Tensor | None = None

    @property
    def num_samples(self) -> int:
        """Return the length of the first tensor; 1 if there is none."""
        values = (*self.args, *self.kwargs.values())
        return next((len(v) for v in values if isinstance(v, Tensor)), 1)


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
    """

    def __init__(self, module: nn.Module, tokenizer: Any, processor: Any) -> None:
        """Keep what is needed to encode."""
        self._module, self._tokenizer, self._processor = module, tokenizer, processor
        known = (m for m in module.modules() if hasattr(type(m), "base_model_prefix"))
        self._inner = next(known, module)  # the network of transformers inside a wrapper

    def __call__(self, inputs: Any) -> Batch:
        """Return the batch; the inputs themselves stay as they are."""
        if isinstance(inputs, Batch):
            return inputs
        if isinstance(inputs, Call):
            return self._given(inputs.args, inputs.kwargs)
        if isinstance(inputs, tuple):
            return self._given(inputs, {})
        if isinstance(inputs, Mapping):
            return self._given((), dict(inputs))
        if isinstance(inputs, str):
            return self.text([inputs])
        if isinstance(inputs, Tensor | np.ndarray):
            return self._array(torch.as_tensor(inputs))
        if isinstance(inputs, Sequence) and len(inputs):
            return self._several(inputs)
        kind = type(inputs).__name__
        raise InputError(
            f"inputs must be text, tokens, arrays or a batch and not empty, got {kind}"
        )

    def text(self, texts: Sequence[str], special: bool = True) -> Batch:
        """Encode texts, padded on the left so that position -1 is each row's last token.

        Encoders, whose attention is two-way, are padded on the right instead: their first token
        stands for the text, and it must stay first.
        """
        if self._tokenizer is None:
            raise InputError(
                "text needs a tokenizer and this network has none: "
                "pass tokenizer= to ak.open, or give token ids"
            )
        for i, text in enumerate(texts):
            if not text:
                raise InputError(f"a prompt must not be empty, got {text!r} at index {i}")
        ids = [self._tokenizer(t, add_special_tokens=special)["input_ids"] for t in texts]
        return self._tokens(ids)

    def _several(self, inputs: Sequence[Any]) -> Batch:
        first = inputs[0]
        if all(isinstance(i, str) for i in inputs):
            return self.text(list(inputs))
        if isinstance(first, Mapping):
            return self._chats([inputs])
        if isinstance(first, int):
            return self._tokens([list(inputs)])
        if isinstance(first, list | tuple) and first and isinstance(first[0], Mapping):
            return self._chats(inputs)
        if isinstance(first, list | tuple) and all(isinstance(t, int) for i in inputs for t in i):
            return self._tokens([list(i) for i in inputs])
        if isinstance(first, Tensor | np.ndarray) and np.ndim(first) == 1:
            rows = [torch.as_tensor(i) for i in inputs]
            if all(not r.is_floating_point() for r in rows):
                return self._tokens([r.tolist() for r in rows])
        return self._media(inputs)

    def _chats(self, chats: Sequence[Any]) -> Batch:
        if getattr(self._tokenizer, "chat_template", None) is None:
            raise InputError("chat messages need a tokenizer with a chat template; there is none")
        texts = [
            self._tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True)
            for c in chats
        ]
        return self.text(texts, special=False)

    def _media(self, inputs: Sequence[Any]) -> Batch:
        """Encode images or sounds with the processor."""
        if self._processor is None:
            raise InputError(
                f"a list of {type(inputs[0]).__name__} needs a processor and there is none: "
                "pass processor= to ak.open, or give a tensor"
            )
        sees = "pixel_values" in inspect.signature(self._module.forward).parameters
        if sees:
            fed = self._processor(images=list(inputs), return_tensors="pt")
        else:
            fed = self._processor(audio=list(inputs), return_tensors="pt", **self._sound_mask())
        return self._given((), dict(fed))

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
        name = getattr(self._inner, "main_input_name", None)
        if not array.numel():
            raise InputError(f"inputs must not be empty, got shape {tuple(array.shape)}")
        if name == "input_ids" and not array.is_floating_point() and array.dim() in (1, 2):
            ids = torch.atleast_2d(array).long()  # type: ignore[no-untyped-call]
            return self._given((), {"input_ids": ids})
        if name is None or name == "input_ids":
            return self._given((array,), {})
        return self._given((), {name: array})

    def _tokens(self, rows: list[list[int]]) -> Batch:
        """Pad token ids; positions are told where the network can hear them."""
        if not all(rows):
            raise InputError(f"a prompt must have a token, got lengths {[len(r) for r in rows]}")
        ids = torch.full((len(rows), max(map(len, rows))), self._pad_id())
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            own = slice(len(row)) if self._two_way else slice(-len(row), None)
            ids[i, own], mask[i, own] = torch.tensor(row), 1
        kwargs = {"input_ids": ids, "attention_mask": mask}
        if not mask.all() and self._hears_positions():
            kwargs["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
        return self._given((), kwargs)

    def _pad_id(self) -> int:
        """Return the id to pad with: the tokenizer's, else the network's, else 0."""
        sources = (self._tokenizer, _text_config(self._inner))
        found = (getattr(source, "pad_token_id", None) for source in sources)
        return next((i for i in found if isinstance(i, int) and i >= 0), 0)

    @cached_property
    def _two_way(self) -> bool:
        """Say whether the network's attention, if it says so, is never causal."""
        said = [getattr(m, "is_causal", None) for m in self._module.modules()]
        known = [causal for causal in said if isinstance(causal, bool)]
        return bool(known) and not any(known)

    def _hears_positions(self) -> bool:
        """Say whether positions are an argument that counts from 0."""
        outer = inspect.signature(self._module.forward).parameters
        passed = "position_ids" in outer or any(p.kind is p.VAR_KEYWORD for p in outer.values())
        heard = "position_ids" in inspect.signature(self._inner.forward).parameters
        return passed and heard and self._padding_position is None

    @cached_property
    def _padding_position(self) -> int | None:
        """Return the position of padding where the others count on from it, as in RoBERTa.

        Such networks find positions from the ids, and need no telling.
        """
        for path, module in self._module.named_modules():
            if path.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                return module.padding_idx
        return None

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Batch:
        """Move arguments to the network's device and check what can be checked."""
        device = input_device(self._module)
        args = tuple(_moved(a, device) for a in args)
        kwargs = {k: _moved(v, device) for k, v in kwargs.items()}
        ids = kwargs.get("input_ids")
        tokens = ids if isinstance(ids, Tensor) and ids.dim() == 2 else None
        mask = kwargs.get("attention_mask")
        valid = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None
        past = None
        if tokens is not None:
            self._check(tokens)
            columns = 0 if valid is None else valid.shape[1]
            if valid is not None and columns > tokens.shape[1]:  # a cache holds the first columns
                past, valid = valid[:, : -tokens.shape[1]], valid[:, -tokens.shape[1] :]
            valid = valid if valid is not None and valid.shape == tokens.shape else None
        return Batch(args, kwargs, tokens, valid, past)

    def _check(self, tokens: Tensor) -> None:
        """Refuse prompts that are empty, too long, or hold unknown tokens."""
        if not tokens.numel():
            raise InputError(f"a prompt must have a token, got shape {tuple(tokens.shape)}")
        length = self.context_length()
        if length is not None and tokens.shape[1] > length:
            raise InputError(
                f"a prompt must fit the context of {length} tokens, got {tokens.shape[1]}; "
                "nothing was cut off"
            )
        size = getattr(_text_config(self._inner), "vocab_size", None)
        lowest, highest = int(tokens.min()), int(tokens.max())
        if size is not None and not 0 <= lowest <= highest < size:
            raise InputError(f"token ids must be 0 to {size - 1}, got {lowest} to {highest}")

    def context_length(self) -> int | None:
        """Return how many tokens fit; None where positions are relative or not used."""
        config = _text_config(self._inner)
        if getattr(config, "model_type", "") in ("t5", "mt5", "umt5"):
            return None
        found = (getattr(config, name, None) for name in _LENGTHS)
        length = next((n for n in found if isinstance(n, int) and n > 0), None)
        if length is not None and self._padding_position is not None:
            return length - self._padding_position - 1
        return length


def _text_config(module: nn.Module) -> Any:
    config = getattr(module, "config", None)
    reader = getattr(config, "get_text_config", None)
    return reader() if callable(reader) else config


def input_device(module: nn.Module) -> torch.device:
    """Return where inputs are to lie: at the first weights that are in memory.

    Offloaded weights (accelerate) are on meta until they are needed; their hooks move the inputs.
    """
    devices = (p.device for p in module.parameters() if not p.is_meta)
    own = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if own is not None:
        return torch.device(own)
    return next(devices, torch.device("cpu"))


def _moved(value: Any, device: torch.device) -> Any:
    value = torch.as_tensor(value) if isinstance(value, np.ndarray) else value
    return value.to(device) if isinstance(value, Tensor) else value
