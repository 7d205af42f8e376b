"""Jamba: blocks of attention among blocks of Mamba; the MLPs of some of either are experts.

In a block of Mamba what the mixer adds to the stream is reached by path,
`model.layers.0.mamba:out`; attention's points hold in the other blocks.
"""

from dataclasses import replace
from typing import Any

from actkit.core.compat import declares
from actkit.core.sites.architectures import llama
from actkit.core.sites.architectures._experts import partly, with_experts
from actkit.core.sites.site import Stack, into, out

MODEL_TYPES = ("jamba",)

_MAMBA = "this block has a state space in place of attention: read its mamba:out"
_WEIGHTS = "this version of transformers weighs experts outside of modules: read router_logits"
_ATTENTION = ("attn_in", "q", "k", "v", "attn_scores", "attn_probs", "z", "attn_out")


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack, with a description for each of its four kinds of block."""
    (stack,) = llama.stacks(config)
    own = {
        "resid_mid": into("pre_ff_layernorm", is_stream=True),
        "mlp_in": into("feed_forward"),
        "mlp_pre": out("feed_forward.up_proj"),
        "mlp_gate": out("feed_forward.gate_proj"),
        "mlp_hidden": into("feed_forward.down_proj"),
        "mlp_out": out("feed_forward"),
        "final_norm": out("final_layernorm"),
    }
    dense = replace(stack, places={**stack.places, **own})
    number, chosen = config.num_experts, config.num_experts_per_tok
    sparse = with_experts(dense, number, chosen, mlp="feed_forward", router="router")
    if not declares("jamba.modeling_jamba", "JambaTopKRouter"):
        sparse = _plain_router(sparse)
    counts = config.layers_num_experts
    plain = [i for i, count in enumerate(counts) if count <= 1]
    whole = partly(sparse, dense, plain) if len(plain) < len(counts) else dense
    kinds = enumerate(config.layers_block_type)
    mambas = {i: _mamba(whole.others.get(i, whole)) for i, kind in kinds if kind == "mamba"}
    return (replace(whole, others={**whole.others, **mambas}),)


def _plain_router(stack: Stack) -> Stack:
    """Return the stack for versions of transformers whose router is a map, which weighs nothing."""
    places = {k: v for k, v in stack.places.items() if k != "router_weights"}
    places["router_logits"] = out("feed_forward.router", flat=True)
    return replace(stack, places=places, lacks={**stack.lacks, "router_weights": _WEIGHTS})


def _mamba(stack: Stack) -> Stack:
    return replace(stack, others={}, lacks={**stack.lacks, **dict.fromkeys(_ATTENTION, _MAMBA)})
