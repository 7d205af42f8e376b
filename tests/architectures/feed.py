"""What a network of any kind can read: token ids, images, sound, found by trying.

Shapes: B batch, T tokens, Y and X pixels, M mel bins.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.architectures.build import Built
from tests.architectures.inputs import INPUTS, ids, noise, targets


class NoFeed(Exception):  # noqa: N818
    """Nothing that was tried could be read; says what the last try raised."""


def even(built: Built) -> dict[str, Any]:
    """Return arguments of one call: two rows of one length, without padding."""
    first = ""
    for kwargs in _candidates(built):
        try:
            with torch.no_grad():
                built.network(**kwargs)
        except Exception as error:  # noqa: BLE001 - networks raise whatever they like
            first = first or f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        else:
            return kwargs
    raise NoFeed(first or "nothing to try")


def _candidates(built: Built) -> Iterator[dict[str, Any]]:
    network = built.network
    if built.kind in INPUTS:
        yield INPUTS[built.kind](network.config)
        return
    names = inspect.signature(network.forward).parameters
    decoder = {"decoder_input_ids": targets()} if "decoder_input_ids" in names else {}
    if "input_ids" in names:
        if decoder:
            yield {"input_ids": ids(), **decoder}
        yield {"input_ids": ids()}
    main = network.main_input_name
    for name in ("pixel_values", "pixel_values_videos", "input_values", "input_features", main):
        if name in names and name != "input_ids":
            for x in _tensors(network, name):
                if decoder:
                    yield {name: x, **decoder}
                yield {name: x}


def _tensors(network: Any, name: str) -> Iterator[Tensor]:
    """Return images or sounds of the sizes that the configuration tells, then others."""
    if "pixel" in name:
        configs = [getattr(network.config, name, None) for name in ("vision_config", "encoder")]
        configs.insert(0, network.config)
        sizes = [s for c in configs for s in _image_sizes(c)] or [32]
        channels = getattr(network.config, "num_channels", 3)
        channels = channels if isinstance(channels, int) else 3
        for side in dict.fromkeys([*sizes, 32, 64, 224]):
            yield noise(2, channels, side, side)
        for frames in (2, 4, 16):
            yield noise(2, frames, 3, sizes[0], sizes[0])
        return
    bins = _number(network.config, "num_mel_bins", "feature_size", "input_feat_per_channel") or 16
    if name == "input_values":
        if isinstance(getattr(network.config, "max_length", None), int):
            yield noise(2, network.config.max_length, bins)
        yield noise(2, 1600)
        yield noise(2, 1, 1600)
    for length in (2 * (_number(network.config, "max_source_positions") or 24), 40, 64):
        yield noise(2, length, bins)
        yield noise(2, bins, length)


def _image_sizes(config: Any) -> list[int]:
    size = getattr(config, "image_size", None)
    size = size[0] if isinstance(size, list | tuple) else size
    return [size] if isinstance(size, int) else []


def _number(config: Any, *names: str) -> int | None:
    configs = (
        config,
        getattr(config, "audio_config", None),
        getattr(config, "encoder_config", None),
    )
    found = (getattr(c, name, None) for c in configs for name in names)
    return next((n for n in found if isinstance(n, int)), None)
