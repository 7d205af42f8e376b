"""The oracle is a network of transformers, written to GGUF by the format's own rules."""

import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from actkit.core.errors import ModelError
from actkit.core.provenance import file_hash
from actkit.opening.gguf import SEAL, Header, kept, load_gguf, read_header
from actkit.opening.pretrained import Options

WORDS = ["<end>", *(chr(97 + i) for i in range(26)), "ab", "abc", "Ġ", "Ġa", "."]
HEADS, KEY_HEADS, WIDTH = 4, 2, 64
IDS = torch.tensor([[3, 17, 0, 28, 9, 9, 31]])
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "model.layers": "blk",
}  # fmt: skip


def network() -> Any:
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, max_position_embeddings=48,
        rms_norm_eps=1e-5, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model: Any = LlamaForCausalLM(config)
        for weight in model.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    return model.eval()


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """The order of llama.cpp: the two halves of a rotation side by side."""
    out, width = weight.shape
    return weight.reshape(heads, 2, out // heads // 2, width).transpose(1, 2).reshape(out, width)


def write(
    path: Path, arch: str = "llama", kind: str = "F32", tokens: bool = True, without: str = "-"
) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(48)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(WORDS))
    if tokens:
        add_tokens(writer)
    for name, weight in network().state_dict().items():
        if without not in name:
            add_tensor(writer, name, weight, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokens(writer: Any) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] + [1] * (len(WORDS) - 1))
    writer.add_token_merges(["a b", "ab c", "Ġ a"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def add_tensor(writer: Any, name: str, weight: Tensor, kind: str) -> None:
    if "q_proj" in name or "k_proj" in name:
        weight = interleaved(weight, HEADS if "q_proj" in name else KEY_HEADS)
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    array = weight.numpy().copy()
    if kind == "F32" or array.ndim == 1:
        writer.add_tensor(name, array)
    else:
        quant = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quantize(array, quant), raw_dtype=quant)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ACTKIT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "tiny-1.0.F32.gguf")


def logits(module: nn.Module) -> Tensor:
    with torch.no_grad():
        out: Tensor = module(IDS).logits
    return out


def copy_of(path: Path) -> Path:
    folder = kept(file_hash(path), torch.float32)
    assert folder is not None
    return folder


def copies(cache: Path) -> list[Path]:
    return [path for path in (cache / "gguf").iterdir() if path.is_dir()]


def test_opens_the_same_network_and_tokenizer(plain: Path) -> None:
    first = load_gguf(plain, Options())
    assert torch.equal(logits(first.module), logits(network()))
    assert first.name == "tiny-1.0.F32"
    assert "quantization_config" not in (copy_of(plain) / "config.json").read_text()
    assert not first.module.training
    assert first.tokenizer("abc ab.").input_ids == [28, 29, 27, 31]  # by hand: abc, Ġ, ab, .
    again = load_gguf(plain, Options())
    assert torch.equal(logits(again.module), logits(first.module))
    assert again.tokenizer("abc ab.").input_ids == [28, 29, 27, 31]


def test_the_second_open_reads_the_kept_copy(plain: Path) -> None:
    load_gguf(plain, Options())
    before = (copy_of(plain) / SEAL).stat()
    load_gguf(plain, Options())
    after = (copy_of(plain) / SEAL).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_quantised_weights_are_the_formats_own(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", kind="Q8_0")
    module: Any = load_gguf(path, Options()).module
    weight = network().model.layers[1].mlp.up_proj.weight.detach().numpy()
    kind = gguf.GGMLQuantizationType.Q8_0
    expected = gguf.dequantize(gguf.quantize(weight, kind), kind)
    assert np.array_equal(module.model.layers[1].mlp.up_proj.weight.detach().numpy(), expected)
    assert not np.array_equal(expected, weight)


@pytest.mark.parametrize("first", [None, torch.float32])
def test_bfloat16_is_the_rounded_float32(
    plain: Path, cache: Path, first: torch.dtype | None
) -> None:
    if first is not None:
        load_gguf(plain, Options(dtype=first))
    module = load_gguf(plain, Options(dtype=torch.bfloat16)).module
    wanted = network().bfloat16().state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in module.state_dict().items())
    assert [path.name.split("-")[-1] for path in copies(cache)] == [
        "float32" if first else "bfloat16"
    ]


def test_a_file_without_tokens_has_no_tokenizer(tmp_path: Path) -> None:
    loaded = load_gguf(write(tmp_path / "bare.gguf", tokens=False), Options())
    assert loaded.tokenizer is None
    assert torch.equal(logits(loaded.module), logits(network()))


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-5, os.SEEK_END)
        file.write(bytes([byte ^ 0x40]))


def damage(folder: Path, how: str) -> None:
    weights, seal = folder / "model.safetensors", folder / SEAL
    if how == "flipped":
        flip(weights)
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "gone":
        weights.unlink()
    elif how == "config":
        (folder / "config.json").write_text("{}")
    elif how == "unsealed":
        seal.unlink()
    else:
        seal.write_text(how)


@pytest.mark.parametrize(
    "how", ["flipped", "cut", "gone", "config", "unsealed", "", "[]", "{}", '{"a": 1}']
)
def test_a_damaged_copy_is_built_anew(plain: Path, how: str) -> None:
    load_gguf(plain, Options())
    damage(copy_of(plain), how)
    assert kept(file_hash(plain), torch.float32) is None
    loaded = load_gguf(plain, Options())
    assert torch.equal(logits(loaded.module), logits(network()))
    assert loaded.tokenizer("abc").input_ids == [28]
    assert kept(file_hash(plain), torch.float32) is not None


def test_a_copy_that_moved_is_trusted_by_its_bytes(plain: Path) -> None:
    load_gguf(plain, Options())
    folder = copy_of(plain)
    for path in folder.iterdir():
        os.utime(path, ns=(1, 1))
    assert copy_of(plain) == folder


def test_what_a_killed_process_left_is_cleared(plain: Path) -> None:
    load_gguf(plain, Options())
    folder = copy_of(plain)
    partial = folder.rename(folder.with_suffix(".partial"))
    flip(partial / "model.safetensors")
    (partial / "stray.bin").touch()
    assert torch.equal(logits(load_gguf(plain, Options()).module), logits(network()))
    assert not partial.exists() and not (copy_of(plain) / "stray.bin").exists()


CHILD = """
import sys
from pathlib import Path
from actkit.opening import gguf
from actkit.opening.pretrained import Options
from actkit.core.provenance import weight_hash
builds, build = [], gguf._build
gguf._build = lambda *given: builds.append(build(*given))
import transformers.models.llama.modeling_llama
print("ready", flush=True)
sys.stdin.readline()
print(weight_hash(gguf.load_gguf(Path(sys.argv[1]), Options()).module), len(builds))
"""


@pytest.mark.slow
def test_processes_at_once_build_one_whole_copy(plain: Path, cache: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", CHILD, str(plain)]
    pipe = subprocess.PIPE
    children = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(3)
    ]
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    outputs = [child.communicate(timeout=100) for child in children]
    assert [err for _, err in outputs] == ["", "", ""]
    hashes, builds = zip(*(out.split() for out, _ in outputs), strict=True)
    assert len(set(hashes)) == 1 and sorted(builds) == ["0", "0", "1"]
    assert len(copies(cache)) == 1
    assert torch.equal(logits(load_gguf(plain, Options()).module), logits(network()))


def test_a_cache_that_cannot_be_written_is_said(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ACTKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot keep a copy in .*set ACTKIT_CACHE") as caught:
        load_gguf(plain, Options())
    assert isinstance(caught.value.__cause__, OSError)


def test_a_full_disk_is_said_and_leaves_nothing(
    plain: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)
    with pytest.raises(ModelError, match="No space left"):
        load_gguf(plain, Options())
    assert copies(cache) == []


def test_the_header_is_read_without_the_weights(plain: Path, tmp_path: Path) -> None:
    assert read_header(plain) == Header("llama", True)
    assert read_header(write(tmp_path / "bare.gguf", tokens=False)) == Header("llama", False)


def broken(path: Path, name: str, data: bytes) -> Path:
    target = path / name
    target.write_bytes(data)
    return target


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (0, b"GGML", r"must start with b'GGUF', this starts b'GGML'"),
        (4, struct.pack("<I", 1), r"version must be one of \(2, 3\), got 1"),
        (4, struct.pack(">I", 3), r"version must be one of"),
        (8, struct.pack("<Q", 10**9), r"not a readable|the file ends in it"),
        (16, struct.pack("<Q", 2**63), r"not a readable|the file ends in it"),
    ],
)
def test_a_wrong_header_is_named(
    plain: Path, tmp_path: Path, at: int, new: bytes, message: str
) -> None:
    data = bytearray(plain.read_bytes())
    data[at : at + len(new)] = new
    path = broken(tmp_path, "broken.gguf", bytes(data))
    with pytest.raises(ModelError, match=message) as caught:
        load_gguf(path, Options())
    assert "broken.gguf" in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must start with b'GGUF', this starts b''"):
        load_gguf(broken(tmp_path, "empty.gguf", b""), Options())


def test_every_truncation_is_refused(plain: Path, tmp_path: Path) -> None:
    data = plain.read_bytes()
    chosen = random.Random(3).sample(range(4, len(data)), 150)
    for size in [4, 5, 23, 24, *chosen, len(data) - 1]:
        with pytest.raises(ModelError, match=f"{size:,}"):
            read_header(broken(tmp_path, "cut.gguf", data[:size]))


def test_random_bytes_in_the_header_never_escape(plain: Path, tmp_path: Path) -> None:
    data, draw, refused = plain.read_bytes(), random.Random(5), 0
    for _ in range(300):
        changed = bytearray(data)
        changed[draw.randrange(4, 2500)] = draw.randrange(256)
        try:
            read_header(broken(tmp_path, "odd.gguf", bytes(changed)))
        except ModelError:
            refused += 1
    assert refused > 20


def test_an_unsupported_architecture_is_named(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "odd.gguf", arch="perceptron")
    with pytest.raises(ModelError, match=r"odd\.gguf: .*'perceptron'.*not supported") as caught:
        load_gguf(path, Options())
    assert caught.value.__cause__ is not None
    assert copies(cache) == []


def test_a_file_that_lacks_a_weight_is_refused(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "holed.gguf", without="layers.1.mlp.up_proj")
    with pytest.raises(ModelError, match=r"holed\.gguf: .*layers\.1\.mlp\.up_proj\.weight is not"):
        load_gguf(path, Options())
    assert copies(cache) == []


def test_no_bar_on_a_standard_error_that_is_no_terminal(
    plain: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sys.stderr
    load_gguf(plain, Options())
    assert sys.stderr is before
    assert capfd.readouterr().err == ""


def test_the_seal_lists_every_file(plain: Path) -> None:
    load_gguf(plain, Options())
    folder = copy_of(plain)
    files = json.loads((folder / SEAL).read_text())
    assert set(files) == {path.name for path in folder.iterdir()} - {SEAL}
    assert {name: facts[2] for name, facts in files.items()} == {
        name: file_hash(folder / name) for name in files
    }
