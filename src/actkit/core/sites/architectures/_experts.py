"""Where the points of a router and its experts lie, in networks that keep all experts fused."""

from collections.abc import Iterable
from dataclasses import replace

from actkit.core.sites.layout import Layout
from actkit.core.sites.site import Place, Stack, out

POINTS = ("router_logits", "router_weights", "expert_hidden")
_INSIDE = ("mlp_pre", "mlp_gate", "mlp_hidden")
_EXPERTS = "this block's MLP is experts: read expert_hidden"
_DENSE = "this block has a plain MLP; other blocks of the network have experts"


def with_experts(
    stack: Stack, number: int, chosen: int, mlp: str = "mlp", router: str = "gate", weights: int = 1
) -> Stack:
    """Return a stack whose MLPs are experts, `chosen` of `number` for each token.

    Args:
        stack: The stack.
        number: Number of experts.
        chosen: How many of them a token uses.
        mlp: Path of the MLP below the block.
        router: The router's name below the MLP.
        weights: Item of what the router returns that holds the weights.
    """
    flat, gate = Layout(flat=True), f"{mlp}.{router}"
    places = {k: v for k, v in stack.places.items() if k not in _INSIDE}
    routed = {
        "router_logits": Place(gate, "router", layout=flat),
        "router_weights": out(gate, weights, flat=True),
        "expert_hidden": Place(f"{mlp}.experts", "experts", layout=flat),
    }
    return replace(
        stack,
        experts=(number, chosen),
        places=places | routed,
        lacks={**stack.lacks, **dict.fromkeys(_INSIDE, _EXPERTS)},
    )


def partly(sparse: Stack, dense: Stack, plain: Iterable[int]) -> Stack:
    """Return the stack of experts in which some blocks, by index, have a plain MLP."""
    own = replace(dense, lacks={**dense.lacks, **dict.fromkeys(POINTS, _DENSE)})
    return replace(sparse, others=dict.fromkeys(plain, own))
