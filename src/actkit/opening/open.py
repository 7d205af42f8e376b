"""`open`: from a name, a Hub id, a folder, a GGUF file or a module to a Model."""

import difflib
import os
import re
from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from actkit.core.errors import ModelError
from actkit.model import Model
from actkit.opening.adapters import hub_adapter, is_adapter, load_adapter
from actkit.opening.bundled import BUNDLED, load_bundled
from actkit.opening.gguf import load_gguf
from actkit.opening.pretrained import Options, Pretrained, load_folder, load_hub, require

HUB_ID = re.compile(r"(?=.{1,96}$)\w[\w.-]*(/\w[\w.-]*)?")


def open(
    source: str | PathLike[str] | nn.Module,
    *,
    tokenizer: Any = None,
    processor: Any = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    axes: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> Model:
    """Open any network.

    Args:
        source: One of

            - `"smollm2"`, `"minilm"`, `"efficientnet-lite0"`, `"gemma-270m"`, `"whisper-tiny"`:
              real networks that come in registry packages. A folder of the same name is opened as
              `"./smollm2"`.
            - A folder that `save_pretrained` wrote, or a model's id on the Hub. Without a
              connection, the Hub's own cache is used.
            - A folder with an adapter of PEFT: its base is opened, and the adapter put on it.
            - A `.gguf` file: de-quantised once, then kept in the user's cache.
            - Any `torch.nn.Module`: taken as it is, in the mode, on the device and in the dtype it
              has. Put it in `eval()` first if its dropout should rest.
        tokenizer: Used instead of the source's own; a source may have none.
        processor: Likewise, for images and sound.
        dtype: `torch.bfloat16` or `"bfloat16"`. By default a folder's or Hub model's own, float32
            for GGUF files and the named networks.
        device: Where to put the network, `"cuda"`; for several devices pass `device_map`.
        axes: Which axis of a module's tensor is which, where the module does not show it: letters
            by site name or pattern, `{"stages.*:out": "BYXC"}`; see the page on sites.
        kwargs: Passed on to `from_pretrained`: `attn_implementation`, `revision`, `device_map`...

    Raises:
        ModelError: The network cannot be opened; the message says why and what to do.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
        >>> open(net).module is net
        True
    """
    if isinstance(source, nn.Module):
        _refuse(dtype=dtype, device=device, **kwargs)
        if isinstance(source, torch.jit.ScriptModule):
            raise ModelError(
                "a scripted network (torch.jit) runs where no hook can stand: open the module that "
                f"it was made from, got {type(source).__name__}"
            )
        return Model(source, tokenizer, processor, _name(source), axes=axes)
    if not isinstance(source, (str, PathLike)):
        kinds = "a name, a Hub id, a folder, a .gguf file or a torch.nn.Module"
        raise ModelError(f"the source must be {kinds}, got {type(source).__name__}")
    if device is not None and "device_map" in kwargs:
        raise ModelError(f"give device or device_map, got both: {device}, {kwargs['device_map']}")
    feed = {"tokenizer": tokenizer, "processor": processor}
    own: dict[str, Any] = {"dtype": dtype, "device": device, "axes": axes}
    opener = partial(open, _anywhere(source), **feed, **own, **kwargs)
    asked = kwargs.pop("torch_dtype", None) if dtype is None else dtype
    options = Options(**feed, dtype=_dtype(asked), device=_device(device), kwargs=kwargs)
    return Model(*_load(source, options), opener, axes)


def _load(source: str | PathLike[str], options: Options) -> Pretrained:
    text = os.fsdecode(source)
    if isinstance(source, str) and source in BUNDLED:
        return load_bundled(source, options)
    path = Path(text).expanduser()
    if text and os.path.isdir(path):
        return _load_folder(path, options)
    if os.path.isfile(path):
        return _load_file(path, options)
    if path.suffix.lower() == ".gguf" or not (isinstance(source, str) and HUB_ID.fullmatch(text)):
        raise ModelError(f"no such folder or file, nor a Hub id or a bundled name: {text!r}")
    require("transformers")
    if (folder := hub_adapter(text, options)) is not None:
        return load_adapter(folder, text, options, _load)
    return load_hub(text, options, _hint(text))


def _load_folder(path: Path, options: Options) -> Pretrained:
    inner = path / options.kwargs.get("subfolder", "")
    if is_adapter(inner):
        return load_adapter(inner, path.resolve().name, options, _load)
    return load_folder(path, path.resolve().name, options)


def _load_file(path: Path, options: Options) -> Pretrained:
    if path.suffix.lower() != ".gguf":
        raise ModelError(f"a file must be a .gguf, got {path}; for a checkpoint give its folder")
    return load_gguf(path, options)


def _anywhere(source: str | PathLike[str]) -> str | PathLike[str]:
    """Return a folder or file as it is called in any working folder, all else as it is."""
    path = Path(os.fsdecode(source)).expanduser()
    return source if source in BUNDLED or not path.exists() else path.absolute()


def _hint(text: str) -> str:
    """Return the bundled name that was probably meant, all of them if none is near."""
    candidates = {name: name for name in BUNDLED}
    candidates |= {entry.hub.lower(): name for name, entry in BUNDLED.items() if entry.hub}
    near = difflib.get_close_matches(text.lower(), candidates, 1)
    if near:
        return f"; nearest bundled name: {candidates[near[0]]}"
    return f"; bundled names: {', '.join(BUNDLED)}"


def _refuse(**settings: Any) -> None:
    given = {key: value for key, value in settings.items() if value is not None}
    if given:
        raise ModelError(f"a module is taken as it is: move or cast it yourself, got {given}")


def _name(module: nn.Module) -> str:
    """Return what the module was loaded as, if it says so, else its class."""
    config = getattr(module, "config", None)
    return str(getattr(config, "name_or_path", None) or type(module).__name__)


def _dtype(asked: torch.dtype | str | None) -> torch.dtype | None:
    if asked is None or asked == "auto":
        return None
    found = getattr(torch, asked, None) if isinstance(asked, str) else asked
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ModelError(f"dtype must be a floating-point type such as 'bfloat16', got {asked!r}")
    return found


def _device(asked: torch.device | str | None) -> torch.device | None:
    if asked is None:
        return None
    try:
        return torch.empty(0, device=asked).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device must be one of this machine, got {asked!r}: {reason}") from error
