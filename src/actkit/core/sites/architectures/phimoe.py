"""Phi-3.5 MoE: Llama's blocks with layer norms, whose MLP is a router and experts.

The router takes the two best experts one after the other, each weighted by a softmax over those
that come near it, so `router_weights` do not add up to one.
"""

from typing import Any

from actkit.core.sites.architectures import llama
from actkit.core.sites.architectures._experts import with_experts
from actkit.core.sites.site import Stack

MODEL_TYPES = ("phimoe",)


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack of blocks."""
    (stack,) = llama.stacks(config)
    number, chosen = config.num_local_experts, config.num_experts_per_tok
    return (with_experts(stack, number, chosen, router="router"),)
