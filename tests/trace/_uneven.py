"""Tiny networks whose norms and biases are uneven: freshly made ones have gains 1 and biases 0."""

from typing import Any

import torch

from actkit.model import Model
from tests.core import tiny


def opened(net: Any) -> Model:
    """Open a tiny network after giving its norms and biases uneven numbers."""
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "bias" in name or "ln_" in name or "norm" in name:
                weight.copy_(tiny.uneven(*weight.shape))
    return Model(net, tiny.tokenizer())


def llama() -> Model:
    """Open the tiny Llama, uneven."""
    return opened(tiny.llama())


def gpt2() -> Model:
    """Open the tiny GPT-2, uneven."""
    return opened(tiny.gpt2())
