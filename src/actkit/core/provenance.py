"""Where a number comes from: versions, the weights' hash, the settings; and the user's cache."""

import hashlib
import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from actkit.core.errors import ModelError

if TYPE_CHECKING:
    from actkit.core.run.runner import Runner

HASHERS = 4
"""Threads that hash; they run side by side because hashlib lets go of the interpreter."""


def cache_dir() -> Path:
    """Return the folder for what is worth keeping; nothing is created.

    It is $ACTKIT_CACHE, else `actkit` in $XDG_CACHE_HOME, else `~/.cache/actkit`.
    """
    if own := os.environ.get("ACTKIT_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "actkit"


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weight_hash(module: nn.Module) -> str:
    """Return the SHA-256 of a network's weights, in hexadecimal.

    It covers name, dtype, shape and bytes of every tensor of the state dict in the order of the
    names, wherever the tensors lie and however they are strided; tied tensors are read once.
    Extra state that is no tensor is left out.

    Raises:
        ModelError: A tensor has no bytes here: on the meta device, not materialised, or of a
            layout that cannot be viewed as bytes.

    Example:
        >>> import torch
        >>> one, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        >>> weight_hash(one) == weight_hash(other)
        False
        >>> _ = other.load_state_dict(one.state_dict())
        >>> weight_hash(one) == weight_hash(other)
        True
    """
    state = module.state_dict()
    tensors = {name: state[name] for name in sorted(state) if isinstance(state[name], Tensor)}
    whole = hashlib.sha256()
    with ThreadPoolExecutor(HASHERS) as pool:
        pending: dict[tuple[Any, ...], Future[bytes]] = {}
        for name, tensor in tensors.items():
            _check_bytes(name, tensor)
            if (place := _where(tensor)) not in pending:
                pending[place] = pool.submit(_digest, name, tensor)
        for name, tensor in tensors.items():
            facts = [name, str(tensor.dtype), list(tensor.shape)]
            whole.update(json.dumps(facts).encode() + pending[_where(tensor)].result())
    return whole.hexdigest()


def stamp(model: "Runner | None", *, seed: int | None = None, **settings: Any) -> dict[str, Any]:
    """Return what every artefact carries; it can be written as JSON.

    The weights' hash is None for a network whose weights are partly offloaded from memory.

    Args:
        model: The opened network, None for what no network took part in.
        seed: The seed of the run, if it had one.
        settings: Whatever else the numbers depend on, the data's hash among it. What JSON does
            not know, a dtype or a path, is written as its text.
    """
    return {
        "actkit": _version("actkit"),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "model": model and model.name,
        "weights": None if model is None or _offloaded(model.module) else weight_hash(model.module),
        "seed": seed,
        "settings": json.loads(json.dumps(settings, default=str)),
    }


def _offloaded(module: nn.Module) -> bool:
    by_hooks = any(hasattr(m, "_hf_hook") for m in module.modules())
    moved = by_hooks or hasattr(module, "hf_device_map")
    return moved and any(p.is_meta for p in module.parameters())


def _check_bytes(name: str, tensor: Tensor) -> None:
    if is_lazy(tensor):
        raise ModelError(f"weights must be materialised to be hashed, {name} is not: run it once")
    if tensor.is_meta:
        shape = tuple(tensor.shape)
        raise ModelError(f"weights must be in memory to be hashed, {name} {shape} is on meta")


def _where(tensor: Tensor) -> tuple[Any, ...]:
    """Return what two names of one tensor share."""
    if tensor.layout is not torch.strided or tensor.data_ptr() == 0:
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _digest(name: str, tensor: Tensor) -> bytes:
    try:
        flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        return hashlib.sha256(flat.view(torch.uint8).numpy().data).digest()
    except (RuntimeError, TypeError) as error:
        kind = f"{tensor.dtype} {tuple(tensor.shape)}, {tensor.layout}"
        raise ModelError(f"weights must be plain tensors to be hashed, {name} is {kind}") from error


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
