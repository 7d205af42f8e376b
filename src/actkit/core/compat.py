"""What differs between versions of torch and transformers, asked of the libraries themselves.

Every answer comes from what is installed: a signature, a field. Version numbers are compared
nowhere, and no other file guesses a name that a library has changed.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from types import FrameType
from typing import Any

from torch import nn

from actkit.core.errors import InputError

CACHE_NAMES = ("cache", "past_key_values", "cache_params", "layer_past")
"""Names of the argument, and of the output, that holds the cache of earlier tokens.

The first is transformers' from 5.24 on; before, it was the second for keys and values, the third
for the states of recurrent networks and the fourth inside some blocks. Networks whose code comes
with their checkpoint keep the older ones, and so may a caller: the newer transformers renames them
after hooks have seen them.
"""


def cache_argument(called: nn.Module | Callable[..., Any]) -> str | None:
    """Return the name by which a module or function takes a cache, None if it takes none.

    A wrapper that passes keywords on, such as PEFT's, takes what the module inside it takes.

    Args:
        called: A network, one of its modules, or a function.

    Example:
        >>> def forward(input_ids, past_key_values=None): ...
        >>> cache_argument(forward)
        'past_key_values'
        >>> cache_argument(nn.Linear(3, 2)) is None
        True
    """
    inner = called.modules() if isinstance(called, nn.Module) else [called]
    for each in inner:
        forward = each.forward if isinstance(each, nn.Module) else each
        parameters = inspect.signature(forward).parameters
        named = next((name for name in CACHE_NAMES if name in parameters), None)
        passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if named is not None or not passes_on:
            return named
    return None


def cache_keywords(called: nn.Module | Callable[..., Any], cache: Any) -> dict[str, Any]:
    """Return the keywords that hand a cache on: one, under the name that it is taken by.

    Args:
        called: A network, one of its modules, or a function.
        cache: The cache; None to hand on none, which needs no keyword.

    Raises:
        InputError: It takes no cache.

    Example:
        >>> def forward(input_ids, past_key_values=None): ...
        >>> cache_keywords(forward, "a cache"), cache_keywords(forward, None)
        ({'past_key_values': 'a cache'}, {})
    """
    if cache is None:
        return {}
    name = cache_argument(called)
    if name is None:
        kind = type(called).__name__
        raise InputError(f"a cache needs a network that takes one, {kind} names none in forward")
    return {name: cache}


def output_cache(output: Any) -> Any:
    """Return the cache among what a network returned, None if there is none.

    Args:
        output: Of a network's call; a plain tuple does not say which of its parts is a cache.

    Example:
        >>> output_cache({"logits": 1, "past_key_values": 2})
        2
        >>> output_cache((1, 2)) is None
        True
    """
    held = output if isinstance(output, Mapping) else getattr(output, "__dict__", {})
    # not `name in held`: transformers answers for a deprecated name too, and warns
    names = set(held.keys())
    return next((held[name] for name in CACHE_NAMES if name in names), None)


@cache
def kernel_reads(kernel: Callable[..., Any], setting: str) -> bool:
    """Say whether an attention kernel reads a setting that modules hand to every kernel.

    Kernels swallow what they do not name. So `sdpa` leaves out a softcap, and some versions of
    transformers choose it for networks that have one.

    Args:
        kernel: As transformers' registry of attention functions holds it.
        setting: "softcap", "position_bias", ...

    Example:
        >>> def sdpa(module, query, key, value, mask, scaling=None, **others): ...
        >>> kernel_reads(sdpa, "scaling"), kernel_reads(sdpa, "softcap")
        (True, False)
    """
    return setting in inspect.signature(kernel).parameters


def declares(file: str, name: str) -> bool:
    """Say whether a file of the installed transformers declares a class.

    Args:
        file: Below `transformers.models`, such as "dinov2.modeling_dinov2".
        name: Of the class.
    """
    return hasattr(import_module(f"transformers.models.{file}"), name)


def is_output_capture(hook: Callable[..., Any]) -> bool:
    """Say whether a hook is one of transformers' own that only collect outputs.

    It sets them at the first request for `output_hidden_states`, and leaves them.
    """
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"


def is_checkpointing(network: nn.Module) -> bool:
    """Say whether blocks of a network are computed again during backward."""
    return any(
        m.training and getattr(m, "gradient_checkpointing", False) for m in network.modules()
    )


def is_in_checkpoint() -> bool:
    """Say whether what runs now will run again during backward (`torch.utils.checkpoint`)."""
    # by who called: torch 2.6 does not say which hooks for saved tensors are set
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            return True
        frame = frame.f_back
    return False


def prompt_learning(network: nn.Module) -> Any:
    """Return PEFT's config of a network that learns prompts, None of any other.

    Such a network leaves position ids out.
    """
    configs = getattr(network, "peft_config", None)
    active = getattr(network, "active_adapter", None)
    config = configs.get(active) if isinstance(configs, Mapping) else None
    return config if getattr(config, "is_prompt_learning", False) else None


def num_virtual_tokens(network: nn.Module) -> int:
    """Return how many columns PEFT puts in front of each prompt (prompt tuning, p-tuning).

    Prefix tuning puts its own into the cache, where they are no columns.
    """
    config = prompt_learning(network)
    if config is None:
        return 0
    kind = str(getattr(config, "peft_type", "")).rpartition(".")[2]
    return int(config.num_virtual_tokens) if kind in ("PROMPT_TUNING", "P_TUNING") else 0


def generators(network: nn.Module) -> list[nn.Module]:
    """Return the modules, the network itself among them, that have transformers' `generate`."""
    # asked of the classes: a module searches long for what it lacks
    own = (m for m in network.modules() if hasattr(type(m), "prepare_inputs_for_generation"))
    return [m for m in own if hasattr(type(m), "generate") or "generate" in vars(m)]


def generation_setting(module: Any, given: Mapping[str, Any], name: str) -> Any:
    """Return a setting of a call of `generate`: as given, else of its config, else the network's.

    Args:
        module: Whose `generate` is called.
        given: The keyword arguments of the call.
        name: Of the setting.
    """
    if given.get(name) is not None:
        return given[name]
    configs = (given.get("generation_config"), getattr(module, "generation_config", None))
    found = (getattr(config, name, None) for config in configs)
    return next((value for value in found if value is not None), None)
