"""Qwen 1.5 and 2 MoE, Qwen 3 MoE: Llama's blocks, some or all with a router and experts.

`router_weights` and `expert_hidden` are as in Mixtral. Qwen 2's shared expert, which every token
uses, is no part of them: it is reached by path, `model.layers.0.mlp.shared_expert.down_proj:in`.
"""

from dataclasses import replace
from typing import Any

from actkit.core.sites.architectures import llama
from actkit.core.sites.architectures._experts import partly, with_experts
from actkit.core.sites.site import Stack

MODEL_TYPES = ("qwen2_moe", "qwen3_moe")


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack; its blocks with a plain MLP are described apart."""
    (dense,) = llama.stacks(config)
    sparse = with_experts(
        replace(dense, hidden=config.moe_intermediate_size),
        config.num_experts,
        config.num_experts_per_tok,
    )
    plain = [i for i in range(config.num_hidden_layers) if not _has_experts(config, i)]
    return (partly(sparse, dense, plain),)


def _has_experts(config: Any, block: int) -> bool:
    """Say whether a block has experts, by the rule of the network itself."""
    every = config.decoder_sparse_step
    chosen = block not in config.mlp_only_layers and (block + 1) % every == 0
    return chosen and config.num_experts > 0
