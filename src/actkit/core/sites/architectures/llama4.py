"""Llama 4's language model: Llama's blocks, some or all with a router and experts.

The router gives each token a weight for every expert, zero for those that are not chosen, and the
weight scales what the expert reads. So `router_weights` and `expert_hidden` have one entry for
every expert, in the experts' own order. The shared expert, which every token uses, is reached by
path, `model.layers.0.feed_forward.shared_expert.down_proj:in`.
"""

from dataclasses import replace
from typing import Any

from actkit.core.sites.architectures import llama
from actkit.core.sites.architectures._experts import partly, with_experts
from actkit.core.sites.site import Place, Stack, into, out

MODEL_TYPES = ("llama4_text",)


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack; its blocks with a plain MLP are described apart."""
    (stack,) = llama.stacks(config)
    named = {p: place for p, place in stack.places.items() if not p.startswith("mlp_")}
    dense = replace(
        stack, hidden=config.intermediate_size_mlp, places={**named, **_mlp("feed_forward")}
    )
    number = config.num_local_experts
    sparse = with_experts(
        replace(dense, hidden=config.intermediate_size),
        number,
        number,
        mlp="feed_forward",
        router="router",
        weights=0,
    )
    # with experts the sublayer returns all tokens of the batch on one axis
    sparse = replace(sparse, places={**sparse.places, "mlp_out": out("feed_forward", 0, flat=True)})
    plain = [i for i in range(config.num_hidden_layers) if i not in config.moe_layers]
    return (partly(sparse, dense, plain),)


def _mlp(path: str) -> dict[str, Place]:
    return {
        "mlp_in": into(path),
        "mlp_pre": out(f"{path}.up_proj"),
        "mlp_gate": out(f"{path}.gate_proj"),
        "mlp_hidden": into(f"{path}.down_proj"),
        "mlp_out": out(path),
    }
