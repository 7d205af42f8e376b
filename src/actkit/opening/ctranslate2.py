"""Reads the `model.bin` of CTranslate2, and builds the Whisper that is in one.

The file is a header (version, name of the specification, its revision) and a list of named
tensors, all numbers little-endian; a second list gives names that share a tensor. Projections that
read the same input are stored one below the other: queries, keys and values of self-attention,
keys and values of attention over the encoder.
"""

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actkit.core.errors import ModelError
from actkit.opening.pretrained import Options, Pretrained, opening, require

VERSIONS = (5, 6)
DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
"""Types of stored tensors, in the order of their numbers."""

GELU = 3
"""The number of the exact GELU among CTranslate2's activation functions."""

PLACES: dict[str, tuple[str, ...]] = {
    "conv1": ("conv1",),
    "conv2": ("conv2",),
    "position_encodings": ("embed_positions",),
    "embeddings": ("embed_tokens",),
    "projection": ("proj_out",),
    "layer_norm": ("layer_norm",),
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.{}_proj", "q", "k", "v"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.{}_proj", "k", "v"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
"""Where CTranslate2 keeps what: transformers' module, and the parts of a projection in order."""

KINDS = {
    "weight": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "encodings": "weight",
}
_LAYER = re.compile(r"layer_(?P<index>\d+)/(?P<place>.+)")

ENGLISH_VOCABULARY = 51_864
"""Size of the vocabulary of the Whispers that know no other language than English."""


def read_model(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return a file's specification and its tensors by name; they share one read-in copy.

    Raises:
        ModelError: The version or a tensor's type is unknown, or the file is cut off or longer
            than its lists say.
    """
    cursor = _BinCursor(bytearray(path.read_bytes()))
    try:
        version = cursor.number("I")
        if version not in VERSIONS:
            raise ValueError(f"the version must be one of {VERSIONS}, got {version}")
        specification, _ = cursor.text(), cursor.number("I")
        tensors = dict(cursor.tensor() for _ in range(cursor.number("I")))
        for _ in range(cursor.number("I")):
            alias, name = cursor.text(), cursor.text()
            tensors[alias] = tensors[name]
    except (struct.error, UnicodeDecodeError, KeyError, IndexError, ValueError) as error:
        raise ModelError(f"{path}: not a readable CTranslate2 file: {error}") from error
    if cursor.at != len(cursor.data):
        raise ModelError(
            f"{path}: must end with its last list, at byte {cursor.at:,}, got {len(cursor.data):,}"
        )
    return specification, tensors


@dataclass
class _BinCursor:
    data: bytearray
    at: int = 0

    def number(self, form: str) -> int:
        """Return the next number, of the form that `struct` calls I, H or B."""
        (value,) = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return int(value)

    def text(self) -> str:
        """Return the next text; the stored length counts a zero at its end."""
        length = self.number("H")
        raw = self.data[self.at : self.at + length]
        if len(raw) < length or not raw.endswith(b"\0"):
            raise ValueError(f"a name must end with a zero, none at byte {self.at + length:,}")
        self.at += length
        return raw[:-1].decode()

    def tensor(self) -> tuple[str, Tensor]:
        """Return the next tensor and its name."""
        name = self.text()
        shape = [self.number("I") for _ in range(self.number("B"))]
        dtype, size = DTYPES[self.number("B")], self.number("I")
        count = math.prod(shape)
        if size != count * dtype.itemsize or self.at + size > len(self.data):
            raise ValueError(f"{name} {tuple(shape)} must be whole, got {size:,} bytes")
        start, self.at = self.at, self.at + size
        return name, torch.frombuffer(self.data, dtype=dtype, count=count, offset=start).view(shape)


def load_whisper(folder: Path, name: str, options: Options) -> Pretrained:
    """Open a Whisper from a folder with `model.bin`, `config.json` and `tokenizer.json`.

    Nothing else is in such a folder, so sizes come from the tensors, and what the feature extractor
    and `generate` need beyond `config.json` is what holds for every Whisper: sound of 16 kHz in
    pieces of 30 seconds, and a multilingual network by the size of its vocabulary.

    Raises:
        ModelError: The file holds something else, or its weights are quantised.
    """
    require("transformers")
    if options.kwargs:
        raise ModelError(f"{name} takes no further options, got {[*options.kwargs]}")
    with opening(f"cannot open the weights in {folder}"):
        specification, tensors = read_model(folder / "model.bin")
        if specification != "WhisperSpec":
            raise ModelError(f"{folder} must hold a Whisper, got {specification}")
        tokenizer = options.tokenizer or _tokenizer(folder)
        module = _build(tensors, tokenizer, json.loads((folder / "config.json").read_text()))
        module.to(options.device, options.dtype or torch.float32).eval()
        processor = options.processor or _processor(module.config, tokenizer)
    return Pretrained(module, tokenizer, processor, name)


def _tokenizer(folder: Path) -> Any:
    from transformers import WhisperTokenizer

    return WhisperTokenizer.from_pretrained(str(folder))


def _processor(config: Any, tokenizer: Any) -> Any:
    import transformers

    extractor: Any = transformers.WhisperFeatureExtractor
    processor: Any = transformers.WhisperProcessor
    return processor(extractor(feature_size=config.num_mel_bins), tokenizer)


def _build(tensors: dict[str, Tensor], tokenizer: Any, said: dict[str, Any]) -> Any:
    """Return the network, its tokens named by the tokenizer and by what `config.json` said."""
    from transformers import WhisperForConditionalGeneration

    _check_form(tensors)
    # built on meta: a first drawing of random weights would move the user's generator
    with torch.device("meta"):
        module: Any = WhisperForConditionalGeneration(_config(tensors, tokenizer))
    module.load_state_dict(_renamed(tensors), assign=True)
    module.tie_weights()
    vars(module.generation_config).update(_generation(module.config, tokenizer, said))
    return module


def _check_form(tensors: dict[str, Tensor]) -> None:
    """Refuse what transformers' Whisper does not compute, or what is not stored in full."""
    for name, x in tensors.items():
        if name.endswith("weight") and not x.is_floating_point():
            raise ModelError(f"weights must be floating-point, {name} is {x.dtype}: quantised")
    wanted = {"activation": GELU, "pre_norm": 1, "alibi": 0, "scale_embeddings": 0}
    for key, value in wanted.items():
        found = tensors.get(f"decoder/{key}")
        if found is not None and int(found) != value:
            raise ModelError(f"decoder/{key} must be {value} in a Whisper, got {int(found)}")


def _config(tensors: dict[str, Tensor], tokenizer: Any) -> Any:
    """Return the configuration that the tensors' shapes tell."""
    from transformers import WhisperConfig

    start = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    vocabulary, width = tensors["decoder/embeddings/weight"].shape
    settings: dict[str, Any] = {}
    for side, positions in (("encoder", "max_source"), ("decoder", "max_target")):
        layers = {name.split("/")[1] for name in tensors if name.startswith(f"{side}/layer_")}
        settings[f"{side}_layers"] = len(layers - {"layer_norm"})
        settings[f"{side}_attention_heads"] = int(tensors[f"{side}/num_heads"])
        settings[f"{side}_ffn_dim"] = len(tensors[f"{side}/layer_0/ffn/linear_0/weight"])
        settings[f"{positions}_positions"] = len(tensors[f"{side}/position_encodings/encodings"])
    return WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=tensors["encoder/conv1/weight"].shape[1],
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        architectures=["WhisperForConditionalGeneration"],
        **settings,
    )


def _generation(config: Any, tokenizer: Any, said: dict[str, Any]) -> dict[str, Any]:
    """Return what `generate` of a Whisper asks of its configuration."""
    found = {
        "decoder_start_token_id": config.decoder_start_token_id,
        "max_length": config.max_target_positions,
        "suppress_tokens": said.get("suppress_ids"),
        "begin_suppress_tokens": said.get("suppress_ids_begin"),
        "alignment_heads": said.get("alignment_heads"),
        "no_timestamps_token_id": tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        "is_multilingual": config.vocab_size != ENGLISH_VOCABULARY,
    }
    if found["is_multilingual"]:
        tasks = ("transcribe", "translate")
        found["task_to_id"] = {t: tokenizer.convert_tokens_to_ids(f"<|{t}|>") for t in tasks}
        ids = said.get("lang_ids") or []
        found["lang_to_id"] = {tokenizer.convert_ids_to_tokens(i): i for i in ids}
    return found


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of transformers' Whisper, in float32."""
    found: dict[str, Tensor] = {}
    for name, x in tensors.items():
        if not x.is_floating_point():
            continue  # a setting
        path, _, kind = name.rpartition("/")
        side, _, path = path.partition("/")
        block, place = "", path
        if in_block := _LAYER.fullmatch(path):
            block, place = f"layers.{in_block['index']}.", in_block["place"]
        if place not in PLACES:
            raise ModelError(f"a Whisper has no tensor {name}")
        ours, *parts = PLACES[place]
        names = [ours.format(part) for part in parts] or [ours]
        for own, piece in zip(names, x.float().chunk(len(names)), strict=True):
            found[f"model.{side}.{block}{own}.{KINDS[kind]}"] = piece
    found["proj_out.weight"] = found.pop("model.decoder.proj_out.weight")
    for name in [n for n in found if n.endswith("k_proj.bias")]:
        if found.pop(name).any():
            raise ModelError(f"a Whisper's keys have no bias, {name} is not zero")
    return found
