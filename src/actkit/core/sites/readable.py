"""Two rows that an unknown network can read: token ids, images or sound."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from actkit.core.run.forms import device_of

ROWS, LENGTH = 2, 5


def readable(network: Any, call: Callable[[dict[str, Tensor]], Any]) -> dict[str, Tensor]:
    """Return two rows of what a network reads, by argument; "" where it has no name.

    Args:
        network: The network.
        call: Lets it read, which tells whether an image or a sound has a shape that it takes.

    Raises:
        ValueError: It reads none of token ids, images and sound, or in a form unknown here.
    """
    if not hasattr(type(network), "base_model_prefix"):
        return {"": tokens(network)}
    name = str(network.main_input_name)
    if name == "input_ids":
        return {name: tokens(network)}
    for shape in _shapes(network.config, name):
        gen = torch.Generator().manual_seed(0)
        x = 0.3 + torch.randn(ROWS, *shape, generator=gen)
        first = next(network.parameters())
        feed = {name: x.to(first.device, first.dtype)}
        try:
            call(feed)
        except (RuntimeError, ValueError, TypeError, IndexError):
            continue  # of another shape than this guess: the next one
        return feed
    raise ValueError(f"it reads {name}, in a form that is not known here")


def _shapes(config: Any, name: str) -> list[tuple[int, ...]]:
    """Return the shapes that one image or sound of a network may have, the likeliest first."""
    if name == "pixel_values":
        size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        known = [sides[-2:]] if all(isinstance(s, int) for s in sides) else []
        return [(channels, *map(int, s)) for s in (*known, (64, 64), (224, 224))]
    bins = (getattr(config, k, None) for k in ("num_mel_bins", "feature_size"))
    number = next((b for b in bins if isinstance(b, int)), 80)
    length = getattr(config, "max_length", None) or 48
    if name == "input_values":
        return [(int(length), number), (3000,)]
    wide = getattr(config, "feature_projection_input_dim", None) or number
    return [(48, int(wide)), (number, 48)] if name == "input_features" else []


def tokens(network: nn.Module) -> Tensor:
    """Return different token ids, without the one that pads.

    Raises:
        ValueError: There is no embedding, so it is not known how many ids there are.
    """
    sizes = [m.num_embeddings for m in network.modules() if isinstance(m, nn.Embedding)]
    if not sizes:
        raise ValueError("it has no embedding of token ids that is known here")
    pad = getattr(getattr(network, "config", None), "pad_token_id", None)
    words = [i for i in range(max(sizes)) if i != pad]
    device = device_of(network)
    ids = [words[(3 + 7 * i) % len(words)] for i in range(ROWS * LENGTH)]
    return torch.tensor(ids, device=device).view(ROWS, LENGTH)
