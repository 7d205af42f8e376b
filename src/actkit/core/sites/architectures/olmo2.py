"""OLMo 2: Llama's blocks with norms after attention and MLP only, before they are added.

Attention and MLP read the residual stream itself, so `attn_in` equals `resid_pre` and `mlp_in`
equals `resid_mid`; an edit at `mlp_in` is seen by the MLP alone.
"""

from dataclasses import replace
from typing import Any

from actkit.core.sites.architectures import llama
from actkit.core.sites.site import Stack, into, out

MODEL_TYPES = ("olmo2",)


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack of blocks."""
    (stack,) = llama.stacks(config)
    normed = {
        "attn_out": out("post_attention_layernorm"),
        "resid_mid": into("mlp", is_stream=True),
        "mlp_out": out("post_feedforward_layernorm"),
    }
    return (replace(stack, places={**stack.places, **normed}),)
