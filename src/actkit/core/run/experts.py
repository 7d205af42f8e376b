"""What a router and its chosen experts compute inside, beside the modules that hide it.

A router of transformers returns its logits for the record only; what flows on are the weights and
indices of the chosen experts. So an edit of the logits chooses and weighs anew, by the router's
own rule: a stand-in whose map is the identity, so that it reads logits. That the stand-in is
right is checked first on the logits that the router had.

Shapes: N tokens, D width, E experts, C chosen experts a token, F hidden width of an expert.
"""

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from actkit.core.errors import EditError
from actkit.core.run.attention import with_gradient_of


class ExpertSocket:
    """Reads `expert_hidden` of a module that holds all experts in fused weights.

    Most take tokens, the indices of each token's experts, and their weights. Llama 4's take every
    token once for every expert, weighted already, so there each token has the hidden row of every
    expert, zero for those that were not chosen.
    """

    def __init__(self, experts: nn.Module, edited: bool) -> None:
        """Plan for one module with `gate_up_proj`, `down_proj` and an activation."""
        self._experts, self._edited = experts, edited

    def __call__(
        self, args: tuple[Any, ...], output: Tensor, run: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Pass (N, C, F) through the taps; return the output, recomputed if it was edited."""
        if len(args) == 1:
            hidden_NEF = run(hidden_of_all(self._experts, args[0]))
            explicit = output_of_all(self._experts, hidden_NEF)
        else:
            acts_ND, chosen_NC, weights_NC = args
            hidden_NCF = run(expert_hidden(self._experts, acts_ND, chosen_NC))
            explicit = expert_output(self._experts, hidden_NCF, chosen_NC, weights_NC)
        explicit = explicit.to(output.dtype)
        if self._edited:
            return explicit
        return with_gradient_of(explicit, output) if torch.is_grad_enabled() else output


class RouterSocket:
    """Reads the logits of a router, which returns (logits, weights, indices) of chosen experts.

    Llama 4's returns (weights of all experts, logits).

    Raises:
        EditError: When the logits are edited and the router's rule reads more than its logits.
    """

    def __init__(self, router: nn.Module) -> None:
        """Plan for one module."""
        self._router = router

    def __call__(
        self, output: tuple[Tensor, ...], run: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, ...]:
        """Pass (N, E) logits through the taps; return the output, chosen anew if they changed."""
        logits_NE = output[_logits_item(output)]
        new_NE = run(logits_NE)
        if new_NE is logits_NE:
            return output
        again = self._route(logits_NE, output)
        alike = len(again) == len(output) and all(map(_agree, again, output))
        if not alike:
            raise EditError(
                "router_logits can be edited only where the logits alone choose the experts, but "
                f"{type(self._router).__name__} does not give its own choice again from them"
            )
        return self._route(new_NE, output)

    def _route(self, logits_NE: Tensor, like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return what the router makes of logits, in the form and types of what it returned."""
        stand_in: Any = copy(self._router)
        num_experts, dtype = logits_NE.shape[-1], logits_NE.dtype
        same_EE = torch.eye(num_experts, dtype=dtype, device=logits_NE.device)
        # a map keeps what it lacks, a bias for example, as None
        own = self._router._parameters.items()
        nothing = {n: None if p is None else torch.zeros_like(p, dtype=dtype) for n, p in own}
        stand_in.__dict__["_parameters"] = {**nothing, "weight": same_EE}
        stand_in.__dict__["hidden_dim"] = num_experts
        # the class's own: what others put into the instance speaks of the router itself
        # an expert that is shut out has -inf, which no product with zeros survives
        most = torch.finfo(dtype).max / 4
        routed = type(stand_in).forward(stand_in, logits_NE.clamp(-most, most))
        item = _logits_item(like)
        return tuple(
            logits_NE if i == item else x.to(y.dtype)
            for i, (x, y) in enumerate(zip(routed, like, strict=True))
        )


def _logits_item(output: tuple[Tensor, ...]) -> int:
    return 0 if len(output) == 3 else 1


def _agree(x: Tensor, y: Tensor) -> bool:
    if x.shape != y.shape:
        return False
    return torch.allclose(x, y) if x.is_floating_point() else torch.equal(x, y)


def expert_hidden(experts: Any, acts_ND: Tensor, chosen_NC: Tensor) -> Tensor:
    """Return what the down projection of each token's chosen experts reads, (N, C, F)."""
    width = experts.down_proj.shape[1 if _transposed(experts) else 2]
    hidden_NCF = acts_ND.new_zeros(*chosen_NC.shape, width)
    for e in sorted({*chosen_NC.flatten().tolist()}):
        n, c = torch.where(chosen_NC == e)
        gate_up = _mapped(experts, "gate_up_proj", acts_ND[n], e)
        hidden_NCF = hidden_NCF.index_put((n, c), _gated(experts, gate_up))
    return hidden_NCF


def expert_output(
    experts: Any, hidden_NCF: Tensor, chosen_NC: Tensor, weights_NC: Tensor
) -> Tensor:
    """Return the (N, D) weighted sum of the chosen experts' outputs."""
    width = experts.down_proj.shape[2 if _transposed(experts) else 1]
    # some routers weigh in float32 whatever the network computes in
    wide = torch.promote_types(hidden_NCF.dtype, weights_NC.dtype)
    total_ND = hidden_NCF.new_zeros(len(hidden_NCF), width, dtype=wide)
    for e in sorted({*chosen_NC.flatten().tolist()}):
        n, c = torch.where(chosen_NC == e)
        out = _mapped(experts, "down_proj", hidden_NCF[n, c], e)
        total_ND = total_ND.index_add(0, n, (out * weights_NC[n, c, None]).to(total_ND.dtype))
    return total_ND


def hidden_of_all(experts: Any, acts: Tensor) -> Tensor:
    """Return (N, E, F) of experts that read (E * N, D): every token, weighted, for each expert."""
    acts_END = acts.view(len(experts.gate_up_proj), -1, acts.shape[-1])
    gate_EN2F = torch.bmm(acts_END, experts.gate_up_proj)
    gate, up = gate_EN2F.chunk(2, dim=-1)
    hidden_ENF: Tensor = up * experts.act_fn(gate)
    return hidden_ENF.transpose(0, 1)


def output_of_all(experts: Any, hidden_NEF: Tensor) -> Tensor:
    """Return the (E * N, D) outputs of all experts."""
    out_END = torch.bmm(hidden_NEF.transpose(0, 1), experts.down_proj)
    return out_END.reshape(-1, out_END.shape[-1])


def _transposed(experts: Any) -> bool:
    """Say whether weights are (E, in, out), as in GPT-OSS, rather than (E, out, in)."""
    return bool(getattr(experts, "is_transposed", False))


def _mapped(experts: Any, name: str, x: Tensor, expert: int) -> Tensor:
    """Put rows through one expert's map."""
    weight, bias = getattr(experts, name)[expert], getattr(experts, f"{name}_bias", None)
    y = x @ weight if _transposed(experts) else nn.functional.linear(x, weight)
    return y if bias is None else y + bias[expert]


def _gated(experts: Any, gate_up: Tensor) -> Tensor:
    """Apply the experts' own gate, which may clamp, or interleave gate and up map."""
    if hasattr(experts, "_apply_gate"):
        gated: Tensor = experts._apply_gate(gate_up)
        return gated
    gate, up = gate_up.chunk(2, dim=-1)
    return experts.act_fn(gate) * up  # type: ignore[no-any-return]
