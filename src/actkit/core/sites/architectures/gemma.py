"""Gemma 2 and 3: Llama's blocks with a norm also after attention and MLP, before they are added.

`embeddings` carry the factor sqrt(width) that the embedding module puts on; `logits` and
`attn_scores` are what is left after the soft caps of Gemma 2.
"""

from dataclasses import replace
from typing import Any

from actkit.core.sites.architectures import llama
from actkit.core.sites.site import Stack, into, out

MODEL_TYPES = ("gemma2", "gemma3_text")


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack of blocks."""
    (stack,) = llama.stacks(config)
    normed = {
        "attn_out": out("post_attention_layernorm"),
        "resid_mid": into("pre_feedforward_layernorm", is_stream=True),
        "mlp_out": out("post_feedforward_layernorm"),
    }
    return (replace(stack, places={**stack.places, **normed}),)
