"""Where the points of a router and its experts lie, in networks that keep all experts fused."""

from dataclasses import replace

from actkit.core.layout import Layout
from actkit.core.sites import Place, Stack, out

_INSIDE = ("mlp_pre", "mlp_gate", "mlp_hidden")
_EXPERTS = "this block's MLP is experts: read expert_hidden"


def with_experts(stack: Stack, number: int, chosen: int) -> Stack:
    """Return a stack whose MLPs are experts, `chosen` of `number` for each token."""
    flat = Layout(flat=True)
    places = {k: v for k, v in stack.places.items() if k not in _INSIDE}
    routed = {
        "router_logits": Place("mlp.gate", "router", layout=flat),
        "router_weights": out("mlp.gate", 1, flat=True),
        "expert_hidden": Place("mlp.experts", "experts", layout=flat),
    }
    return replace(
        stack,
        experts=(number, chosen),
        places=places | routed,
        lacks={**stack.lacks, **dict.fromkeys(_INSIDE, _EXPERTS)},
    )
