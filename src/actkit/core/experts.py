"""What each chosen expert computes inside, beside the fused kernel that serves all of them.

Shapes: N tokens, D width, E experts, C chosen experts a token, F hidden width of an expert.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from actkit.core.attention import with_gradient_of


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
