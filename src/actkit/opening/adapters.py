"""Opens a network with an adapter of PEFT: a folder with adapter_config.json names its base."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from actkit.core.errors import DataError, ModelError
from actkit.core.sealed_file import check_seal
from actkit.opening.pretrained import (
    TOKENIZER_FILES,
    Options,
    Pretrained,
    companion,
    opening,
    quiet_bars,
    require,
)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_OF_THE_ADAPTER = ("revision", "subfolder", "code_revision")
_NOISE = "lora_bias=True"


def is_adapter(folder: Path) -> bool:
    """Say whether a folder holds an adapter and no network of its own."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def hub_adapter(repo: str, options: Options) -> Path | None:
    """Return the folder of an adapter in the Hub's cache on this machine, None if there is none."""
    from huggingface_hub import try_to_load_from_cache

    place = {key: options.kwargs.get(key) for key in ("cache_dir", "revision")}
    name = Path(options.kwargs.get("subfolder", ""), CONFIG).as_posix()
    found = try_to_load_from_cache(repo, name, **place)
    folder = Path(found).parent if isinstance(found, str) else None
    return folder if folder is not None and is_adapter(folder) else None


def load_adapter(
    folder: Path, name: str, options: Options, load: Callable[[str, Options], Pretrained]
) -> Pretrained:
    """Open the base network of an adapter, and put the adapter on it.

    Args:
        folder: Of the adapter.
        name: What it is called.
        options: What the user asked for; of the base, too.
        load: Opens the base.

    Raises:
        ModelError: PEFT is not installed, the adapter names no base or one that cannot be opened,
            or its weights are damaged or those of another network.
    """
    require("peft", extra="peft")
    by_hand = f"open both yourself: ak.open(peft.PeftModel.from_pretrained(base, {str(folder)!r}))"
    with opening(f"cannot read {folder / CONFIG}"):
        base = json.loads((folder / CONFIG).read_text()).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"an adapter must name its base network, {folder} does not; {by_hand}")
    if is_adapter(Path(base).expanduser()):
        raise ModelError(f"an adapter's base must be a network, {base} is an adapter; {by_hand}")
    kwargs = {k: v for k, v in options.kwargs.items() if k not in _OF_THE_ADAPTER}
    of_base = replace(options, kwargs=kwargs)
    try:
        loaded = load(base, of_base)
    except ModelError as error:
        raise ModelError(f"{folder} is an adapter of {base!r}: {error}; {by_hand}") from error
    with opening(f"cannot open the adapter {folder}"), quiet_bars():
        module = _adapted(loaded.module, folder)
        own = companion(str(folder), of_base, "AutoTokenizer", TOKENIZER_FILES)
    return Pretrained(module, own or loaded.tokenizer, loaded.processor, name)


def _adapted(network: nn.Module, folder: Path) -> nn.Module:
    from peft import PeftModel

    if (folder / WEIGHTS).is_file():
        try:
            check_seal(folder / WEIGHTS, "an adapter's file")
        except DataError as error:
            raise ModelError(str(error)) from error
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        module: Any = PeftModel.from_pretrained(network, str(folder))
    for warning in told:
        text = str(warning.message)
        if "missing adapter keys" in text:
            raise ValueError(f"its weights are those of another network: {text}")
        if not issubclass(warning.category, FutureWarning) and _NOISE not in text:
            warnings.warn_explicit(text, warning.category, warning.filename, warning.lineno)
    adapted: nn.Module = module.train(network.training)
    return adapted
