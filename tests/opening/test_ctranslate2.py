"""The oracle is a Whisper of transformers, written to CTranslate2 by the format's own rules."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from actkit.core.errors import ModelError
from actkit.opening.ctranslate2 import load_whisper, read_model
from actkit.opening.pretrained import Options

SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", "<|transcribe|>",
           "<|translate|>")  # fmt: skip
KINDS = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, np.dtype(np.int16): 2,
         np.dtype(np.float16): 4}  # fmt: skip


def network() -> Any:
    """Two encoder blocks, three decoder blocks; every size another, 7 mel bins."""
    config = WhisperConfig(
        vocab_size=11, d_model=12, encoder_layers=2, decoder_layers=3, num_mel_bins=7,
        encoder_attention_heads=3, decoder_attention_heads=3, encoder_ffn_dim=20,
        decoder_ffn_dim=28, max_source_positions=9, max_target_positions=8,
        decoder_start_token_id=1, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module: Any = WhisperForConditionalGeneration(config)
        for weight in module.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    return module.eval()


def stored(module: Any) -> dict[str, Any]:
    """The tensors as CTranslate2 names them; written out by hand, not by the reader's table."""
    state = {name: x.numpy() for name, x in module.state_dict().items()}
    found: dict[str, Any] = {"decoder/activation": np.int8(3), "decoder/pre_norm": np.int8(1)}

    def linear(to: str, *paths: str) -> None:
        rows = [state[f"{path}.weight"] for path in paths]
        zero = np.zeros(len(rows[0]), np.float32)  # keys have no bias
        found[f"{to}/weight"] = np.concatenate(rows)
        found[f"{to}/bias"] = np.concatenate([state.get(f"{p}.bias", zero) for p in paths])

    def norm(to: str, path: str) -> None:
        found[f"{to}/gamma"], found[f"{to}/beta"] = state[f"{path}.weight"], state[f"{path}.bias"]

    for side, layers in (("encoder", 2), ("decoder", 3)):
        found[f"{side}/num_heads"] = np.int16(3)
        for i in range(layers):
            to, at = f"{side}/layer_{i}", f"model.{side}.layers.{i}"
            qkv = [f"{at}.self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
            linear(f"{to}/self_attention/linear_0", *qkv[:3])
            linear(f"{to}/self_attention/linear_1", qkv[3])
            norm(f"{to}/self_attention/layer_norm", f"{at}.self_attn_layer_norm")
            if side == "decoder":
                q, k, v, out = (f"{at}.encoder_attn.{n}_proj" for n in ("q", "k", "v", "out"))
                linear(f"{to}/attention/linear_0", q)
                linear(f"{to}/attention/linear_1", k, v)
                linear(f"{to}/attention/linear_2", out)
                norm(f"{to}/attention/layer_norm", f"{at}.encoder_attn_layer_norm")
            linear(f"{to}/ffn/linear_0", f"{at}.fc1")
            linear(f"{to}/ffn/linear_1", f"{at}.fc2")
            norm(f"{to}/ffn/layer_norm", f"{at}.final_layer_norm")
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        positions = state[f"model.{side}.embed_positions.weight"]
        found[f"{side}/position_encodings/encodings"] = positions
    for name in ("conv1", "conv2"):
        linear(f"encoder/{name}", f"model.encoder.{name}")
    found["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    return found


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def written(tensors: dict[str, Any], specification: str = "WhisperSpec", version: int = 6) -> bytes:
    data = struct.pack("<I", version) + text(specification) + struct.pack("<II", 3, len(tensors))
    for name, array in tensors.items():
        array = np.asarray(array)
        data += text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        data += struct.pack("<BI", KINDS[array.dtype], array.nbytes) + array.tobytes()
    return (
        data
        + struct.pack("<I", 1)
        + text("decoder/projection/weight")
        + text("decoder/embeddings/weight")
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as the packages hold it: the tensors, what they are, and the tokenizer."""
    (tmp_path / "model.bin").write_bytes(written(stored(network())))
    said = {"suppress_ids": [4], "suppress_ids_begin": [5, 0], "alignment_heads": [[1, 2]],
            "lang_ids": [6]}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(said))
    raw = Tokenizer(BPE({chr(97 + i): i for i in range(6)}, []))
    raw.add_special_tokens(list(SPECIAL))
    raw.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


class Tokens:
    """A tokenizer that knows the special tokens by hand."""

    def convert_tokens_to_ids(self, token: str) -> int:
        return {name: i for i, name in enumerate(SPECIAL)}[token]

    def convert_ids_to_tokens(self, index: int) -> str:
        return f"<|{index}|>"


def opened(folder: Path, **settings: Any) -> Any:
    own: dict[str, Any] = {"tokenizer": Tokens(), "processor": object(), **settings}
    return load_whisper(folder, "tiny", Options(**own))


def logits(module: Any) -> Tensor:
    features = torch.linspace(-1, 2, 2 * 7 * 18).sin().view(2, 7, 18)
    with torch.no_grad():
        out: Tensor = module(input_features=features, decoder_input_ids=IDS).logits
    return out


IDS = torch.tensor([[1, 3, 7, 2], [1, 9, 9, 4]])


def test_opens_the_same_network(folder: Path) -> None:
    loaded = opened(folder)
    assert torch.equal(logits(loaded.module), logits(network()))
    assert not loaded.module.training and loaded.name == "tiny"
    config = loaded.module.config
    assert (config.encoder_ffn_dim, config.decoder_ffn_dim, config.num_mel_bins) == (20, 28, 7)
    assert (config.decoder_start_token_id, config.eos_token_id) == (1, 0)
    generation = loaded.module.generation_config
    assert generation.suppress_tokens == [4] and generation.begin_suppress_tokens == [5, 0]
    assert generation.no_timestamps_token_id == 2 and generation.alignment_heads == [[1, 2]]
    assert generation.is_multilingual and generation.lang_to_id == {"<|6|>": 6}
    assert generation.task_to_id == {"transcribe": 3, "translate": 4}
    assert loaded.module.proj_out.weight is loaded.module.model.decoder.embed_tokens.weight


def test_the_generator_of_the_user_stays_where_it_is(folder: Path) -> None:
    before = torch.get_rng_state()
    opened(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_is_widened_and_another_dtype_is_kept(folder: Path) -> None:
    half = {k: x.astype(np.float16) if x.ndim else x for k, x in stored(network()).items()}
    (folder / "model.bin").write_bytes(written(half))
    module = opened(folder).module
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    exact = torch.from_numpy(half["encoder/conv1/weight"]).float()
    assert torch.equal(module.model.encoder.conv1.weight, exact)
    rounded = opened(folder, dtype=torch.bfloat16).module
    assert torch.equal(rounded.model.encoder.conv1.weight, exact.bfloat16())


def test_the_tokenizer_and_the_extractor_come_with_it(folder: Path) -> None:
    loaded = load_whisper(folder, "tiny", Options())
    assert loaded.tokenizer.convert_tokens_to_ids("<|notimestamps|>") == 8
    assert loaded.processor.tokenizer is loaded.tokenizer
    assert loaded.processor.feature_extractor.feature_size == 7


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.7, 0.999])
def test_a_file_that_is_cut_off_is_refused(folder: Path, share: float) -> None:
    path = folder / "model.bin"
    data = path.read_bytes()
    path.write_bytes(data[: math.ceil(share * len(data))])
    with pytest.raises(ModelError, match="not a readable CTranslate2 file"):
        read_model(path)


def test_a_file_that_goes_on_is_refused(folder: Path) -> None:
    path = folder / "model.bin"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="must end with its last list"):
        read_model(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"decoder/activation": np.int8(0)}, "decoder/activation must be 3 in a Whisper, got 0"),
        ({"decoder/scale_embeddings": np.int8(1)}, "scale_embeddings must be 0 in a Whisper"),
        ({"encoder/conv1/weight": np.zeros((12, 7, 3), np.int8)}, "int8: quantised"),
        ({"decoder/rotary/weight": np.zeros(3, np.float32)}, "no tensor decoder/rotary/weight"),
        ({"encoder/layer_1/ffn/linear_0/bias": np.zeros(19, np.float32)}, "size mismatch"),
    ],
)
def test_what_is_no_whisper_of_transformers_is_refused(
    folder: Path, change: dict[str, Any], reason: str
) -> None:
    (folder / "model.bin").write_bytes(written({**stored(network()), **change}))
    with pytest.raises(ModelError, match=reason):
        opened(folder)


def test_a_bias_of_keys_a_missing_tensor_or_another_network_are_refused(folder: Path) -> None:
    tensors = stored(network())
    biased = dict(tensors)
    biased["encoder/layer_0/self_attention/linear_0/bias"] = np.ones(36, np.float32)
    short = {k: x for k, x in tensors.items() if k != "decoder/layer_2/ffn/linear_1/bias"}
    files = {
        "keys have no bias": written(biased),
        "Missing key": written(short),
        "must hold a Whisper, got TransformerSpec": written(tensors, "TransformerSpec"),
        r"version must be one of \(5, 6\), got 4": written(tensors, version=4),
    }
    for reason, data in files.items():
        (folder / "model.bin").write_bytes(data)
        with pytest.raises(ModelError, match=reason):
            opened(folder)


def test_further_options_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no further options, got \['revision'\]"):
        opened(folder, kwargs={"revision": "main"})
