"""GPT-OSS: Llama's blocks with attention sinks, whose MLP is a router and experts with biases.

`attn_probs` leave out the sink, so they add up to less than one. Experts clamp gate and up map and
add one to the latter; `expert_hidden` is what comes of it. `router_weights` are a softmax over the
chosen experts' logits, strongest first.
"""

from typing import Any

from actkit.core.sites.architectures import llama
from actkit.core.sites.architectures._experts import with_experts
from actkit.core.sites.site import Stack

MODEL_TYPES = ("gpt_oss",)


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack of blocks."""
    (stack,) = llama.stacks(config)
    number, chosen = config.num_local_experts, config.num_experts_per_tok
    return (with_experts(stack, number, chosen, router="router"),)
