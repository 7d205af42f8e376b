"""Sealed files: safetensors whose metadata hold the SHA-256 of all other bytes of the file.

The digest is taken over the file with zeros in its own place, so it covers names, shapes, padding
and metadata as well as the tensors. Other readers of safetensors see one more entry.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from actkit.core.errors import DataError

KEY = "actkit_sha256"
_BLANK = b"0" * 64
_SEAL = re.compile(rb'"' + KEY.encode() + rb'":"([0-9a-f]{64})"')
_CHUNK = 1 << 24


def write_sealed(
    path: str | PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str], what: str
) -> None:
    """Write tensors and metadata to one file; it appears whole or not at all.

    Args:
        path: The file; an old one is replaced.
        tensors: By name.
        metadata: Texts by name.
        what: What the file is called in errors: "an edit file".

    Raises:
        DataError: The file cannot be written.
    """
    alone = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
    data = save(alone, {**metadata, KEY: _BLANK.decode()})
    seal = _SEAL.search(data)
    if seal is None:
        raise DataError(f"{what} must have a place for its digest, {path} has none")
    digest = hashlib.sha256(data).hexdigest().encode()
    _replace(Path(path), data[: seal.start(1)] + digest + data[seal.end(1) :], what)


def read_sealed(
    path: str | PathLike[str], what: str
) -> tuple[dict[str, Tensor], dict[str, str], bool]:
    """Return a file's tensors and metadata, and whether a seal vouches for them.

    Args:
        path: The file.
        what: As in `write_sealed`.

    Raises:
        DataError: The file is missing, is no whole safetensors file, or is not what was sealed.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{what} must exist, there is none at {path}")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{what} must be a whole safetensors file: {path}: {error}") from error
    metadata.pop(KEY, None)
    return tensors, metadata, check_seal(file, what)


def check_seal(path: Path, what: str) -> bool:
    """Say whether a file has a seal, as those written by others have none.

    Raises:
        DataError: It has one, and some bit of the file is not what was sealed; or it cannot be
            read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            # the header's length may be damaged itself: never ask for more than there is
            header = file.read(min(int.from_bytes(start, "little"), path.stat().st_size))
            seal = _SEAL.search(header)
            if seal is None:
                return False
            blank = header[: seal.start(1)] + _BLANK + header[seal.end(1) :]
            found = hashlib.sha256(start + blank)
            while chunk := file.read(_CHUNK):
                found.update(chunk)
    except OSError as error:
        raise DataError(f"{what} must be readable: {path}: {error.strerror}") from error
    told = seal[1].decode()
    if found.hexdigest() != told:
        raise DataError(
            f"{what} must be what was written: {path} is damaged, its SHA-256 is "
            f"{found.hexdigest()[:12]}..., it was sealed as {told[:12]}..."
        )
    return True


def _replace(path: Path, data: bytes, what: str) -> None:
    """Write to a temporary name, then rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{what} must be writable: {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
