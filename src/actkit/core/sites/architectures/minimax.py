"""MiniMax: blocks of softmax or linear attention, whose MLP is a router and experts.

A block norms the stream and carries on with what is normed, so `attn_in` and `mlp_in` are what
attention and MLP are added to, and `resid_mid` is their sum before the second norm. Where the
block multiplies what it adds by a factor other than one, `attn_out` or `mlp_out` is refused.
"""

from dataclasses import replace
from typing import Any

from actkit.core.sites.architectures import llama
from actkit.core.sites.architectures._experts import with_experts
from actkit.core.sites.site import Stack, into, out

MODEL_TYPES = ("minimax",)

_FACTOR = "the block adds it {} times, a product that no module returns: read {}:out"
_LINEAR = "this block's attention is linear: it has states in place of scores over keys"


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack; its blocks of linear attention are described apart."""
    (stack,) = llama.stacks(config)
    mid = into("post_attention_layernorm")
    stack = replace(stack, places={**stack.places, "resid_mid": mid})
    stack = with_experts(stack, config.num_local_experts, config.num_experts_per_tok)
    full = _scaled(stack, config.full_attn_beta_factor, config.mlp_beta_factor)
    linear = _scaled(stack, config.linear_attn_beta_factor, config.mlp_beta_factor)
    points = ("q", "k", "v", "attn_scores", "attn_probs", "z")
    linear = replace(
        linear,
        places={**linear.places, "attn_out": out("self_attn")},
        lacks={**linear.lacks, **dict.fromkeys(points, _LINEAR)},
    )
    kinds = enumerate(config.layer_types[: config.num_hidden_layers])
    others = {i: linear for i, kind in kinds if kind == "linear_attention"}
    return (replace(full, others=others),)


def _scaled(stack: Stack, attention: float, mlp: float) -> Stack:
    """Return a stack that lacks what is multiplied on its way to the stream."""
    lacks = dict(stack.lacks)
    if attention != 1:
        lacks["attn_out"] = _FACTOR.format(attention, "self_attn")
    if mlp != 1:
        lacks["mlp_out"] = _FACTOR.format(mlp, "mlp")
    return replace(stack, lacks=lacks)
