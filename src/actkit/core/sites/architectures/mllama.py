"""Llama 3.2 Vision: Llama's blocks, and among them blocks that attend to an image.

A block of the latter kind runs only where there is an image. Gates scale what it adds to the
stream, in no module of their own: what is before the gate is `cross_attn:out.0` and `mlp:out`.
The vision tower is reached by module path.
"""

from dataclasses import replace
from typing import Any

from actkit.core.sites.architectures import llama
from actkit.core.sites.architectures.llava import below
from actkit.core.sites.site import Stack, into, out

MODEL_TYPES = ("mllama", "mllama_text_model")

_IMAGE = "this block attends to the rows of an image, not to tokens: read its cross_attn by path"
_GATED = "a gate scales it on its way to the stream, in no module of its own: read {}:out"


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the language model's stack; its blocks of cross-attention are described apart."""
    if config.model_type == "mllama":
        return (below("language_model", _language(config.text_config)),)
    return (_language(config),)


def _language(config: Any) -> Stack:
    (stack,) = llama.stacks(config)
    heads = stack.heads
    crossing = replace(
        stack,
        places={
            **stack.places,
            "attn_in": into("cross_attn"),
            "q": out("cross_attn.q_proj", heads=heads),
            "z": into("cross_attn.o_proj", heads=heads),
        },
        lacks={
            **dict.fromkeys(("k", "v", "attn_scores", "attn_probs"), _IMAGE),
            "attn_out": _GATED.format("cross_attn"),
            "mlp_out": _GATED.format("mlp"),
        },
    )
    others = dict.fromkeys(config.cross_attention_layers, crossing)
    return replace(stack, others=others)
