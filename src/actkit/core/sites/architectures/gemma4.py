"""Gemma 4's language model: Gemma 3's blocks, of which some have wider heads than the rest.

Blocks of full attention have heads of `global_head_dim`; the last blocks may take keys and values
from an earlier one, and full attention may take its keys for values. With inputs of each layer a
third summand joins the stream after the MLP, `post_per_layer_input_norm:out`; at last a block
multiplies the stream by a number of its own, so `resid_post` is that many times the sum. With
experts, these run beside the MLP: `mlp_out` is both, `mlp_hidden` the MLP's and `expert_hidden`
the experts'.
"""

from dataclasses import replace
from typing import Any

from actkit.core.sites.architectures import gemma
from actkit.core.sites.architectures.llava import below
from actkit.core.sites.layout import Layout
from actkit.core.sites.site import Place, Stack, out

MODEL_TYPES = ("gemma4", "gemma4_text")

_SHARED = "this block takes keys and values from an earlier block"
_KEYS = "this block takes its keys, before their norm, for values: read k"


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the language model's stack, each kind of block described apart."""
    if config.model_type == "gemma4":
        return (below("language_model", _language(config.text_config)),)
    return (_language(config),)


def _language(config: Any) -> Stack:
    # what differs by block is told by the blocks' own configs only
    (stack,) = gemma.stacks(config.per_layer_config[0])
    stack = replace(stack, num_blocks=config.num_hidden_layers)
    if config.enable_moe_block:
        stack = _beside_experts(config, stack)
    blocks = {i: _block(config, stack, i) for i in range(config.num_hidden_layers)}
    return replace(stack, others=blocks)


def _block(config: Any, stack: Stack, index: int) -> Stack:
    """Return one block, with its own width and number of heads."""
    own = config.per_layer_config[index]
    shares = index >= config.num_hidden_layers - config.num_kv_shared_layers
    kv_heads = own.num_key_value_heads
    heads = {p: out(f"self_attn.{p}_proj", heads=kv_heads) for p in "kv"}
    lacks = dict(stack.lacks)
    if shares:
        lacks |= dict.fromkeys("kv", _SHARED)
    elif config.attention_k_eq_v and config.layer_types[index] == "full_attention":
        lacks["v"] = _KEYS
    return replace(
        stack,
        kv_heads=kv_heads,
        head_width=own.head_dim,
        hidden=stack.hidden * (2 if shares and config.use_double_wide_mlp else 1),
        places={**stack.places, **heads},
        lacks=lacks,
    )


def _beside_experts(config: Any, stack: Stack) -> Stack:
    """Return the stack with a router and experts; the router chooses by its map's output."""
    routed = {
        "router_logits": out("router.proj"),
        "router_weights": out("router", 1),
        "expert_hidden": Place("experts", "experts"),
    }
    flat = {p: replace(place, layout=Layout(flat=True)) for p, place in routed.items()}
    return replace(
        stack,
        experts=(config.num_experts, config.top_k_experts),
        expert_width=config.moe_intermediate_size,
        places={**stack.places, **flat},
    )
