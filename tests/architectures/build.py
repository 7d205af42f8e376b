"""A tiny random network of every type that transformers' auto mappings know.

Weights are uneven on purpose: gains are not one, biases are not zero, maps are not small.
"""

import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.architectures.shrink import shrunk
from tests.architectures.tweaks import TWEAKS

MAPPINGS = {
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM",
    "speech": "MODEL_FOR_SPEECH_SEQ_2_SEQ",
    "ctc": "MODEL_FOR_CTC",
    "masked": "MODEL_FOR_MASKED_LM",
    "causal": "MODEL_FOR_CAUSAL_LM",
    "image-text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT",
    "audio": "MODEL_FOR_AUDIO_CLASSIFICATION",
    "image": "MODEL_FOR_IMAGE_CLASSIFICATION",
    "features": "MODEL_FOR_IMAGE",
    "backbone": "MODEL_FOR_BACKBONE",
}
"""What a network does, by the mapping that says so; a type counts under the first that has it."""


@cache
def types() -> dict[str, tuple[str, str]]:
    """Return of every type what it does, and the name of its class."""
    found: dict[str, tuple[str, str]] = {}
    for what, mapping in MAPPINGS.items():
        names = getattr(modeling_auto, f"{mapping}_MAPPING_NAMES")
        for kind, name in names.items():
            name = name if isinstance(name, str) else name[0]
            found.setdefault(kind, (what, name))
    for kind in found:
        if "class" in TWEAKS.get(kind, {}):
            found[kind] = (found[kind][0], TWEAKS[kind]["class"])
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Built:
    """A network and what it reads.

    Attributes:
        kind: Its model type.
        what: What it does, a key of `MAPPINGS`.
        network: The network.
    """

    kind: str
    what: str
    network: Any


def build(kind: str) -> Built:
    """Return the tiny network of a type."""
    what, name = types()[kind]
    tweaks = TWEAKS.get(kind, {})
    config = shrunk(CONFIG_MAPPING[kind], tweaks)
    config = getattr(config, tweaks["part"]) if "part" in tweaks else config
    cls = getattr(transformers, name)
    torch.manual_seed(zlib.crc32(kind.encode()))
    network = cls(config)
    return Built(kind, what, uneven_weights(network))


def uneven_weights(network: nn.Module) -> nn.Module:
    """Spread all weights, in place: maps to a gain near one, offsets and gains about their own."""
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if not p.is_floating_point():
                continue
            noise = torch.randn(p.shape, generator=gen, dtype=torch.float32).to(p.dtype)
            if p.dim() < 2 or "A_log" in name:
                p.add_(0.2 * noise)
            else:
                fan_in = p[0].numel() if p.dim() in (2, 4, 5) else p.shape[-1]
                p.copy_(noise * min(0.5, fan_in**-0.5))
    return network.eval()
