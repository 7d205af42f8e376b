"""Opens GGUF files: de-quantised once, then kept as safetensors in the user's cache.

A kept copy is one folder, named by the file's SHA-256 and the dtype. It is built beside its final
name under a lock, sealed by a list of its files and renamed, so no process ever sees half a copy;
every open compares the copy with the list and builds it anew if they differ.
"""

import json
import math
import mmap
import os
import shutil
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from actkit.core.errors import ModelError
from actkit.core.provenance import cache_dir, file_hash
from actkit.opening.pretrained import (
    Options,
    Pretrained,
    architecture,
    load_folder,
    one_line,
    opening,
    quiet_bars,
    require,
)

SEAL = "actkit.json"
"""The list of a kept copy's files: size, time of the last change (ns) and SHA-256 of each."""

SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)


def load_gguf(path: Path, options: Options) -> Pretrained:
    """Open a GGUF file, in float32 unless another dtype is asked for.

    Raises:
        ModelError: The file is broken, or transformers does not know its architecture; or the
            cache cannot be written.
    """
    dtype = options.dtype or torch.float32
    with opening(f"cannot read {path}"):
        header, sha = read_header(path), file_hash(path)
    folder = kept(sha, dtype) or _keep(path, header, sha, dtype)
    return load_folder(folder, path.stem, replace(options, dtype=dtype))


def join_parts(parts: Sequence[Path], path: Path, sha: str) -> None:
    """Join the parts of a file that came in pieces, unless the whole file is there already.

    Args:
        parts: The pieces, in order.
        path: The whole file; it is built beside this name, so no process sees half of it.
        sha: The whole file's SHA-256, in hexadecimal.

    Raises:
        ModelError: The parts do not make the file with this SHA-256, or it cannot be written.
    """
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if path.is_file() and file_hash(path) == sha:
                return
            partial = path.with_suffix(".partial")
            with partial.open("wb") as whole:
                for part in parts:
                    with part.open("rb") as file:
                        shutil.copyfileobj(file, whole)
            found = file_hash(partial)
            if found != sha:
                partial.unlink()
                names = ", ".join(part.name for part in parts) or "no parts"
                raise ModelError(f"{names} must join to the SHA-256 {sha}, got {found}")
            partial.rename(path)
    except OSError as error:
        room = "set ACTKIT_CACHE to a folder with room"
        raise ModelError(f"cannot join {path.name} in {path.parent}: {error}; {room}") from error


def kept(sha: str, dtype: torch.dtype) -> Path | None:
    """Return the kept copy of the file with this SHA-256, None if there is no whole one.

    A float32 copy serves every dtype: it is rounded when it is opened.
    """
    for candidate in (dtype, torch.float32):
        folder = _folder(sha, candidate)
        if _whole(folder):
            return folder
    return None


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself."""

    architecture: str
    has_tokenizer: bool


def read_header(path: Path) -> Header:
    """Check a GGUF file from end to end without reading its weights.

    Raises:
        ModelError: The magic or the version is wrong, a value or a tensor has an unknown type,
            or the file ends before its last tensor does.
    """
    require("gguf")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4)
        if start != b"GGUF":
            raise ModelError(f"{path}: a GGUF file must start with b'GGUF', this starts {start!r}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                header, end = _parse(_GgufCursor(data))
            except (struct.error, OverflowError):
                rule = "the header must be whole"
                raise ModelError(f"{path}: {rule}, the file ends in it at byte {size:,}") from None
            except (KeyError, RecursionError, ValueError) as error:
                raise ModelError(f"{path}: not a readable GGUF file: {one_line(error)}") from error
    if end > size:
        raise ModelError(f"{path}: truncated: the last tensor ends at byte {end:,}, got {size:,}")
    return header


@dataclass
class _GgufCursor:
    data: mmap.mmap
    at: int = 4

    def take(self, form: str) -> Any:
        (value,) = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return value

    def text(self) -> str:
        length = self.take("Q")
        raw: bytes = self.take(f"{length}s")
        return raw.decode(errors="replace")

    def value(self, kind: int) -> Any:
        """Return a scalar or a string; step over an array."""
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.take(_known(SCALARS, kind, "value"))
        inner, count = self.take("I"), self.take("Q")
        if inner in (STRING, ARRAY):
            for _ in range(count):
                self.value(inner)
        else:
            self.at += count * struct.calcsize(_known(SCALARS, inner, "value"))
        return None


def _parse(cursor: _GgufCursor) -> tuple[Header, int]:
    """Return the header and the byte at which the last tensor ends."""
    from gguf import GGML_QUANT_SIZES

    version = cursor.take("I")
    if version not in VERSIONS:
        raise ValueError(f"the version must be one of {VERSIONS}, got {version}")
    num_tensors, num_values = cursor.take("Q"), cursor.take("Q")
    values = {}
    for _ in range(num_values):
        key = cursor.text()
        values[key] = cursor.value(cursor.take("I"))
    end = 0
    for _ in range(num_tensors):
        cursor.text()
        shape = [cursor.take("Q") for _ in range(cursor.take("I"))]
        block, block_bytes = _known(GGML_QUANT_SIZES, cursor.take("I"), "tensor")
        end = max(end, cursor.take("Q") + math.prod(shape) // block * block_bytes)
    if "general.architecture" not in values:
        raise ValueError(
            "it must name its architecture in general.architecture, it has no such key"
        )
    align = values.get("general.alignment", 32)
    if not (isinstance(align, int) and align > 0):
        raise ValueError(f"general.alignment must be a positive integer, got {align!r}")
    name, has_tokenizer = str(values["general.architecture"]), "tokenizer.ggml.tokens" in values
    return Header(name, has_tokenizer), -(-cursor.at // align) * align + end


def _known(table: Any, kind: int, what: str) -> Any:
    if kind not in table:
        raise ValueError(f"unknown {what} type {kind}")
    return table[kind]


def _folder(sha: str, dtype: torch.dtype) -> Path:
    return cache_dir() / "gguf" / f"{sha}-{str(dtype).removeprefix('torch.')}"


def _whole(folder: Path) -> bool:
    """Whether a kept copy is what its seal says; a file is read only if its time has changed."""
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        return bool(files) and all(_same(folder / name, *facts) for name, facts in files.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def _same(path: Path, size: int, changed: int, sha: str) -> bool:
    found = path.stat()
    return found.st_size == size and (found.st_mtime_ns == changed or file_hash(path) == sha)


def _keep(path: Path, header: Header, sha: str, dtype: torch.dtype) -> Path:
    """Build the kept copy and return it."""
    require("transformers", "accelerate")
    from filelock import FileLock

    folder = _folder(sha, dtype)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not _whole(folder):
                _build(path, header, dtype, folder)
    except (OSError, SafetensorError) as error:
        room = "set ACTKIT_CACHE to a folder with room"
        raise ModelError(f"cannot keep a copy in {folder.parent}: {error}; {room}") from error
    return folder


def _build(path: Path, header: Header, dtype: torch.dtype, folder: Path) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    if sys.stderr.isatty():
        sys.stderr.write(f"de-quantising {path.name}, once: the copy is kept in {folder}\n")
    try:
        with quiet_bars():
            module, tokenizer = _dequantised(path, header, dtype)
            module.save_pretrained(partial)
            if tokenizer is not None:
                tokenizer.save_pretrained(partial)
        _seal(partial)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _dequantised(path: Path, header: Header, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    with opening(f"{path}: cannot read this GGUF of the architecture {header.architecture!r}"):
        config = AutoConfig.from_pretrained(**place)
        tokenizer = AutoTokenizer.from_pretrained(**place) if header.has_tokenizer else None
        module, info = _factory(config).from_pretrained(
            **place, config=config, dtype=dtype, output_loading_info=True
        )
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"every weight must be in the file, {', '.join(missing)} is not")
    # transformers would refuse to save what it still takes for quantised weights
    vars(module.config).pop("quantization_config", None)
    module.hf_quantizer = None
    return module, tokenizer


def _factory(config: Any) -> Any:
    import transformers

    if config.architectures is None:
        if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
            return transformers.AutoModelForCausalLM
        if type(config) in transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
            return transformers.AutoModelForSeq2SeqLM
    return architecture(config)


def _seal(folder: Path) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # the list must not reach the disk before the files do
        found = path.stat()
        files[path.name] = (found.st_size, found.st_mtime_ns, file_hash(path))
    (folder / SEAL).write_text(json.dumps(files), encoding="utf-8")
