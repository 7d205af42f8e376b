"""An untrained copy of a network: the control for what training put there."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from actkit.core.errors import ModelError
from actkit.model import Model

RESETS = ("reset_parameters", "_reset_parameters")
"""What torch's modules call the method that draws their initial weights."""


def untrained(model: Model, seed: int = 0) -> Model:
    """Return a network of the same architecture as it is before training; the model is untouched.

    A network of transformers is built anew from its config, any other is copied and each of its
    modules draws its initial weights again. It has the same device and dtype, and rests in
    `eval()`.

    Args:
        model: The trained network.
        seed: Of the initial weights; the global random state is left as it is.

    Raises:
        ModelError: The network has no weights, or a module that cannot draw its own again.

    Example:
        >>> import actkit as ak
        >>> net = nn.Linear(3, 3)
        >>> bool((untrained(ak.open(net)).module.weight == net.weight).any())
        False
    """
    module = model.module
    first = next(module.parameters(), None)
    if first is None:
        raise ModelError(f"an untrained copy needs weights to draw, {model.name} has none")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        fresh = _from_config(module) if hasattr(module, "_init_weights") else _reset(module)
    fresh = fresh.to(device=first.device, dtype=first.dtype).eval()
    opener = model.opener and partial(_again, model.opener, seed)
    return Model(fresh, model.tokenizer, model.processor, f"untrained {model.name}", opener)


def _again(opener: Callable[[], Model], seed: int) -> Model:
    return untrained(opener(), seed)


def _from_config(module: Any) -> nn.Module:
    config = copy.deepcopy(module.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh: nn.Module = type(module)(config)
    return fresh


def _reset(module: nn.Module) -> nn.Module:
    fresh = copy.deepcopy(module)
    stuck = []
    for path, part in fresh.named_modules():
        reset = next((getattr(part, name) for name in RESETS if hasattr(part, name)), None)
        if reset is not None:
            reset()
        else:
            stuck += [f"{path}.{name}".lstrip(".") for name, _ in part.named_parameters("", False)]
    if stuck:
        raise ModelError(
            "an untrained copy needs modules with reset_parameters; nothing says how these begin: "
            f"{', '.join(stuck[:3])}{' and more' if len(stuck) > 3 else ''}"
        )
    return fresh
