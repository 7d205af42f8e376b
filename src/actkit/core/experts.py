"""What a router and its chosen experts compute inside, beside the modules that hide it.

A router of transformers returns its logits for the record only; what flows on are the weights and
indices of the chosen experts. So an edit of the logits chooses and weighs anew, by the router's
own rule, which is checked first on the logits that it had.

Shapes: N tokens, D width, E experts, C chosen experts a token, F hidden width of an expert.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from actkit.core.attention import with_gradient_of
from actkit.core.errors import EditError


class ExpertSocket:
    """Reads `expert_hidden` of a module that holds all experts in three fused weights."""

    def __init__(self, experts: nn.Module, edited: bool) -> None:
        """Plan for one module with `gate_up_proj`, `down_proj` and `act_fn`."""
        self._experts, self._edited = experts, edited

    def __call__(
        self, args: tuple[Any, ...], output: Tensor, run: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Pass (N, C, F) through the taps; return the output, recomputed if it was edited."""
        acts_ND, chosen_NC, weights_NC = args
        hidden_NCF = run(expert_hidden(self._experts, acts_ND, chosen_NC))
        if not (self._edited or torch.is_grad_enabled()):
            return output
        explicit = expert_output(self._experts, hidden_NCF, chosen_NC, weights_NC)
        explicit = explicit.to(output.dtype)
        return explicit if self._edited else with_gradient_of(explicit, output)


class RouterSocket:
    """Reads the logits of a router that returns (logits, weights, indices) of the chosen experts.

    Raises:
        EditError: When the logits are edited and the router's rule is another one than the k
            largest of a softmax.
    """

    def __init__(self, router: nn.Module) -> None:
        """Plan for one module."""
        self._renormalised = bool(getattr(router, "norm_topk_prob", True))

    def __call__(
        self, output: tuple[Tensor, ...], run: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, ...]:
        """Pass (N, E) logits through the taps; return the output, chosen anew if they changed."""
        logits_NE, weights_NC, chosen_NC = output
        new_NE = run(logits_NE)
        if new_NE is logits_NE:
            return output
        again_NC, same_NC = self._route(logits_NE, weights_NC)
        if not (same_NC.equal(chosen_NC) and again_NC.allclose(weights_NC)):
            raise EditError("router_logits can be edited only where a softmax chooses the experts")
        return (new_NE, *self._route(new_NE, weights_NC))

    def _route(self, logits_NE: Tensor, like_NC: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and indices of the chosen experts, as many and of the type of `like`."""
        top = logits_NE.float().softmax(-1).topk(like_NC.shape[1], dim=-1)
        total = top.values.sum(-1, keepdim=True) if self._renormalised else 1.0
        return (top.values / total).to(like_NC.dtype), top.indices


def expert_hidden(experts: Any, acts_ND: Tensor, chosen_NC: Tensor) -> Tensor:
    """Return act(W_gate x) * W_up x for each token's chosen experts, (N, C, F)."""
    width = experts.down_proj.shape[-1]
    hidden_NCF = acts_ND.new_zeros(*chosen_NC.shape, width)
    for e in sorted({*chosen_NC.flatten().tolist()}):
        n, c = torch.where(chosen_NC == e)
        gate, up = nn.functional.linear(acts_ND[n], experts.gate_up_proj[e]).chunk(2, dim=-1)
        hidden_NCF = hidden_NCF.index_put((n, c), experts.act_fn(gate) * up)
    return hidden_NCF


def expert_output(
    experts: Any, hidden_NCF: Tensor, chosen_NC: Tensor, weights_NC: Tensor
) -> Tensor:
    """Return the (N, D) weighted sum of the chosen experts' outputs."""
    total_ND = hidden_NCF.new_zeros(len(hidden_NCF), experts.down_proj.shape[1])
    for e in sorted({*chosen_NC.flatten().tolist()}):
        n, c = torch.where(chosen_NC == e)
        out = nn.functional.linear(hidden_NCF[n, c], experts.down_proj[e])
        total_ND = total_ND.index_add(0, n, out * weights_NC[n, c, None])
    return total_ND
