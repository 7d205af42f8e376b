"""DeepSeek V2 and V3: attention through a latent; after the first blocks, MLPs are experts.

Keys and values of all heads are made from one latent when they are used, so they are reached by
path, `model.layers.0.self_attn.kv_b_proj:out`; the latent itself is what is cached. Queries are
wider than values where part of them is rotated, and are then refused too. Routers and shared
experts are as in GLM 4.5 MoE; V2's router weighs by a softmax.
"""

from dataclasses import replace
from typing import Any

from actkit.core.sites.architectures import llama
from actkit.core.sites.architectures.glm4_moe import after_the_first
from actkit.core.sites.site import Stack, out

MODEL_TYPES = ("deepseek_v2", "deepseek_v3")

_LATENT = "keys and values are made from one latent: read self_attn.kv_b_proj:out"
_WIDER = "queries have heads of {}, values of {}: read {}:out"


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack; its first blocks, with a plain MLP, are described apart."""
    (stack,) = llama.stacks(config)
    queries = "self_attn.q_proj" if config.q_lora_rank is None else "self_attn.q_b_proj"
    width = config.qk_nope_head_dim + config.qk_rope_head_dim
    lacks = dict.fromkeys("kv", _LATENT)
    if width != config.v_head_dim:
        lacks["q"] = _WIDER.format(width, config.v_head_dim, queries)
    places = {**stack.places, "q": out(queries, heads=stack.heads)}
    stack = replace(
        stack,
        kv_heads=stack.heads,
        head_width=config.v_head_dim,
        places={p: place for p, place in places.items() if p not in lacks},
        lacks=lacks,
    )
    return (after_the_first(config, stack),)
