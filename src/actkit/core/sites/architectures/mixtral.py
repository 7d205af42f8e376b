"""Mixtral: Llama's blocks whose MLP is a router and experts.

`router_weights` are the weights of a token's chosen experts, strongest first; which experts they
are, `model.layers.0.mlp.gate:out.2` tells. `expert_hidden` is in the same order.
"""

from typing import Any

from actkit.core.sites.architectures import llama
from actkit.core.sites.architectures._experts import with_experts
from actkit.core.sites.site import Stack

MODEL_TYPES = ("mixtral",)


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack of blocks."""
    (stack,) = llama.stacks(config)
    return (with_experts(stack, config.num_local_experts, config.num_experts_per_tok),)
