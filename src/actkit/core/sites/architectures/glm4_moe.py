"""GLM 4.5 MoE: Llama's blocks; after the first few, MLPs are a router and experts.

The router weighs by a sigmoid; a bias that balances the load helps to choose but not to weigh.
The shared expert, which every token uses, is no part of `expert_hidden`: it is reached by path,
`model.layers.1.mlp.shared_experts.down_proj:in`.
"""

from dataclasses import replace
from typing import Any

from actkit.core.sites.architectures import llama
from actkit.core.sites.architectures._experts import partly, with_experts
from actkit.core.sites.site import Stack

MODEL_TYPES = ("glm4_moe",)


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack; its first blocks, with a plain MLP, are described apart."""
    (dense,) = llama.stacks(config)
    return (after_the_first(config, dense),)


def after_the_first(config: Any, dense: Stack) -> Stack:
    """Return a stack whose blocks have experts from `first_k_dense_replace` on."""
    sparse = with_experts(
        replace(dense, hidden=config.moe_intermediate_size),
        config.n_routed_experts,
        config.num_experts_per_tok,
    )
    first = min(config.first_k_dense_replace, config.num_hidden_layers)
    return partly(sparse, dense, range(first))
