"""What differs between versions of torch and transformers, asked of the libraries themselves.

Every answer comes from what is installed: a signature, a field. Version numbers are compared
nowhere, and no other file guesses a name that a library has changed.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

CACHE_NAMES = ("cache", "past_key_values", "cache_params", "layer_past")
"""Names of the argument, and of the output, that holds the cache of earlier tokens.

The first is transformers' from 5.24 on; before, it was the second for keys and values, the third
for the states of recurrent networks and the fourth inside some blocks. Networks whose code comes
with their checkpoint keep the older ones.
"""


def cache_argument(called: nn.Module | Callable[..., Any]) -> str | None:
    """Return the name by which a module or function takes a cache, None if it takes none.

    Args:
        called: A network, one of its modules, or a function.

    Example:
        >>> def forward(input_ids, past_key_values=None): ...
        >>> cache_argument(forward)
        'past_key_values'
        >>> cache_argument(nn.Linear(3, 2)) is None
        True
    """
    forward = called.forward if isinstance(called, nn.Module) else called
    parameters = inspect.signature(forward).parameters
    return next((name for name in CACHE_NAMES if name in parameters), None)


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


def num_virtual_tokens(network: nn.Module) -> int:
    """Return how many columns PEFT puts in front of each prompt (prompt tuning, p-tuning).

    Prefix tuning puts its own into the cache, where they are no columns.
    """
    configs = getattr(network, "peft_config", None)
    active = getattr(network, "active_adapter", None)
    config = configs.get(active) if isinstance(configs, Mapping) else None
    if config is None or not getattr(config, "is_prompt_learning", False):
        return 0
    kind = str(getattr(config, "peft_type", "")).rpartition(".")[2]
    return int(config.num_virtual_tokens) if kind in ("PROMPT_TUNING", "P_TUNING") else 0


def generators(network: nn.Module) -> list[nn.Module]:
    """Return the modules, the network itself among them, that have transformers' `generate`."""
    return [m for m in network.modules() if callable(getattr(m, "generate", None))
            and hasattr(m, "prepare_inputs_for_generation")]  # fmt: skip


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
