"""OLMo Hybrid: OLMo 2's blocks of attention among pre-norm blocks of a gated delta rule.

In a block of the delta rule what it adds to the stream is reached by path,
`model.layers.0.linear_attn:out`; attention's points hold in the other blocks.
"""

from dataclasses import replace
from typing import Any

from actkit.core.sites.architectures import llama, olmo2
from actkit.core.sites.site import Stack

MODEL_TYPES = ("olmo_hybrid",)

_LINEAR = "this block has a gated delta rule in place of attention: read its linear_attn:out"
_ATTENTION = ("attn_in", "q", "k", "v", "attn_scores", "attn_probs", "z", "attn_out")


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack; its blocks of linear attention are described apart."""
    (stack,), (pre_norm,) = olmo2.stacks(config), llama.stacks(config)
    linear = replace(pre_norm, lacks=dict.fromkeys(_ATTENTION, _LINEAR))
    kinds = enumerate(config.layer_types[: config.num_hidden_layers])
    others = {i: linear for i, kind in kinds if kind == "linear_attention"}
    return (replace(stack, others=others),)
