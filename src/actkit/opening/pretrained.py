"""Opens what transformers can open: a folder or a model of the Hub, with what feeds it."""

import os
import pickle
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from actkit.core.errors import ModelError

UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)
"""What the readers of configurations, tokenizers and weights raise on a file they cannot take."""

TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)

PLACE_KEYS = (
    "cache_dir",
    "code_revision",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)
"""Keywords that say where the files are; tokenizer and processor need them too."""

REACH_SECONDS = 5.0
"""How long the Hub may take to answer before its copy on this machine is all that counts."""


class Pretrained(NamedTuple):
    """What `open` found."""

    module: nn.Module
    tokenizer: Any
    processor: Any
    name: str


@dataclass(frozen=True)
class Options:
    """What the user asked for beside the source; None leaves it to the source."""

    tokenizer: Any = None
    processor: Any = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)

    def place(self) -> dict[str, Any]:
        """Return the keywords that say where the files are.

        Code that comes with a checkpoint runs only when asked for: without an answer, transformers
        would stop and wait for one at the terminal.
        """
        found = {key: self.kwargs[key] for key in PLACE_KEYS if key in self.kwargs}
        return {"trust_remote_code": False} | found


def load_folder(folder: Path, name: str, options: Options) -> Pretrained:
    """Open a folder that `save_pretrained` wrote.

    Raises:
        ModelError: The folder has no config.json, or its files cannot be read.
    """
    inner = folder / options.kwargs.get("subfolder", "")
    if not (inner / "config.json").is_file():
        others = sorted(path.name for path in inner.glob("*.gguf"))
        hint = f"; open the file itself: {inner / others[0]}" if others else ""
        raise ModelError(f"a model's folder must hold config.json, {inner} does not{hint}")
    return _load(str(folder), name, options)


def load_hub(repo: str, options: Options, hint: str = "") -> Pretrained:
    """Open a model of the Hub; without a connection, its copy in the Hub's own cache.

    Args:
        repo: Its id, `owner/name`.
        options: What the user asked for.
        hint: What to say after the reason if it is neither on the Hub nor in the cache.

    Raises:
        ModelError: It is in neither place, or its files cannot be read.
    """
    require("transformers")
    from huggingface_hub import try_to_load_from_cache

    failure = None if options.kwargs.get("local_files_only") else _hub_failure(repo, options)
    if failure is not None:
        options = replace(options, kwargs={**options.kwargs, "local_files_only": True})
        place = {key: options.kwargs.get(key) for key in ("cache_dir", "revision")}
        config = Path(options.kwargs.get("subfolder", ""), "config.json").as_posix()
        if not isinstance(try_to_load_from_cache(repo, config, **place), str):
            tried = "no folder or file of that name here, nor a copy in the Hub's cache"
            said = f"the Hub: {one_line(failure)}"
            raise ModelError(f"cannot open {repo!r}: {tried}; {said}{hint}") from failure
    return _load(repo, repo, options)


def require(*packages: str, extra: str = "default") -> None:
    """Refuse to go on without these packages, and say how to install them.

    Args:
        packages: Their names.
        extra: The extra of actkit that installs them.

    Raises:
        ModelError: One of them is not installed.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        command = f"pip install 'actkit[{extra}]'"
        raise ModelError(f"opening this needs {' and '.join(missing)}; run: {command}")


def one_line(error: BaseException) -> str:
    """Return an error's kind and message as one line."""
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 200, placeholder=' ...')}"


@contextmanager
def opening(what: str) -> Iterator[None]:
    """Turn what a reader raises on a file it cannot take into one `ModelError`.

    Args:
        what: The file, and the rule that it breaks.
    """
    try:
        yield
    except Exception as error:
        # tokenizers raises nothing finer than a bare Exception; the Hub's errors may be absent
        other = type(error) is Exception or type(error).__module__ == "huggingface_hub.errors"
        if not (isinstance(error, UNREADABLE) or other):
            raise
        raise ModelError(f"{what}: {one_line(error)}") from error


@contextmanager
def quiet_bars() -> Iterator[None]:
    """Keep the bars of other libraries off a standard error that is no terminal.

    They have no common switch, but every one of them starts its text with a carriage return;
    all other text goes through.
    """
    with _STDERR:
        before: Any = sys.stderr
        if before is None or before.isatty():
            yield
            return
        quiet: Any = _WithoutBars(before)
        sys.stderr = quiet
        try:
            yield
        finally:
            sys.stderr = before


_STDERR = threading.RLock()
"""Held while standard error is not the user's: two threads would put back the wrong one."""


class _WithoutBars:
    def __init__(self, stream: Any) -> None:
        self.stream, self.in_bar = stream, False

    def write(self, text: str) -> int:
        ends_bar = self.in_bar and text == "\n"
        if text:
            self.in_bar = text.startswith("\r")
        if not self.in_bar and not ends_bar:
            self.stream.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _hub_failure(repo: str, options: Options) -> Exception | None:
    """Return why the Hub does not give this model, None if it does.

    One question with a time limit; the loaders themselves would ask again and again, for every
    file, before they give up.
    """
    from huggingface_hub import HfApi, errors

    network_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    revision, token = options.kwargs.get("revision"), options.kwargs.get("token")
    try:
        HfApi().model_info(repo, revision=revision, token=token, timeout=REACH_SECONDS)
    except (network_error, OSError, ValueError) as error:
        return error
    return None


def _load(source: str, name: str, options: Options) -> Pretrained:
    require("transformers")
    what = name if name == source else f"{name} ({source})"
    with opening(f"cannot open {what}"), quiet_bars():
        module = _module(source, options)
        tokenizer = companion(source, options, "AutoTokenizer", TOKENIZER_FILES)
        processor = companion(source, options, "AutoProcessor", PROCESSOR_FILES)
        if options.device is not None:
            module.to(options.device)
    return Pretrained(module, tokenizer, processor, name)


def _module(source: str, options: Options) -> nn.Module:
    from transformers import AutoConfig

    config = options.kwargs.get("config") or AutoConfig.from_pretrained(source, **options.place())
    loaded, info = architecture(config, options.place()["trust_remote_code"]).from_pretrained(
        source,
        dtype=options.dtype or "auto",
        output_loading_info=True,
        **{"trust_remote_code": False, **options.kwargs},
    )
    module: nn.Module = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        _report_missing(source, module, missing)
    return module


def architecture(config: Any, remote: bool = False) -> Any:
    """Return the class of transformers that a configuration names, `AutoModel` if it names none.

    Args:
        config: A configuration of transformers.
        remote: Whether code that comes with the checkpoint may be used.
    """
    import transformers

    mapped = getattr(config, "auto_map", None) or {}
    heads = [name for name in mapped if name.startswith("AutoModel")]
    if remote and heads:
        return getattr(transformers, heads[0])
    named = getattr(transformers, (config.architectures or [""])[0], None)
    if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
        return named
    return transformers.AutoModel


def _report_missing(source: str, module: nn.Module, missing: list[str]) -> None:
    """Say that transformers drew weights at random; refuse if it drew them all."""
    total = sum(1 for _ in module.parameters())
    if len(missing) >= total:
        kind = type(module).__name__
        raise ValueError(f"none of the {total} weights of {kind} is in the checkpoint")
    names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    warnings.warn(
        f"{source}: {len(missing)} of {total} weights are not in the checkpoint and were drawn"
        f" at random: {names}",
        stacklevel=2,
    )


def companion(source: str, options: Options, loader: str, files: tuple[str, ...]) -> Any:
    """Return the user's own tokenizer or processor, else the source's, None if it has none."""
    import transformers
    from transformers.utils.hub import has_file

    own = options.tokenizer if loader == "AutoTokenizer" else options.processor
    if own is not None:
        return own
    place = options.place()
    folder = place.get("subfolder", "")
    keys = ("cache_dir", "local_files_only", "revision", "token")
    asked = {key: place[key] for key in keys if key in place}
    if not any(has_file(source, os.path.join(folder, name), **asked) for name in files):
        return None
    return getattr(transformers, loader).from_pretrained(source, **place)
