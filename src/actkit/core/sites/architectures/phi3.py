"""Phi-3 and Phi-4: Llama's blocks with q, k and v in one map, gate and up map in another.

Of Phi-4-multimodal the language model; its towers are reached by module path.
"""

from dataclasses import replace
from typing import Any

from actkit.core.sites.architectures import llama
from actkit.core.sites.site import Stack, out

MODEL_TYPES = ("phi3", "phi4_multimodal")


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack of blocks."""
    (stack,) = llama.stacks(config)
    qkv, mlp = "self_attn.qkv_proj", "mlp.gate_up_proj"
    heads, kv_heads, hidden = stack.heads, stack.kv_heads, stack.hidden
    end_q = heads * stack.head_width
    end_k = end_q + kv_heads * stack.head_width
    end_v = end_k + kv_heads * stack.head_width
    fused = {
        "q": out(qkv, span=(0, end_q), heads=heads),
        "k": out(qkv, span=(end_q, end_k), heads=kv_heads),
        "v": out(qkv, span=(end_k, end_v), heads=kv_heads),
        "attn_out": out("resid_attn_dropout"),
        "mlp_gate": out(mlp, span=(0, hidden)),
        "mlp_pre": out(mlp, span=(hidden, 2 * hidden)),
        "mlp_out": out("resid_mlp_dropout"),
    }
    return (replace(stack, places={**stack.places, **fused}),)
