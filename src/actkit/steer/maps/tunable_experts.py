"""Switch off, tune or force on the experts that a behaviour calls for.

Shapes: N prompts, B batch, T tokens, E experts, C chosen experts a token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.controller import StrengthOperation
from actkit.core.edits.edit import Edit
from actkit.core.edits.where import Where
from actkit.core.errors import EditError, InputError
from actkit.model import Model
from actkit.steer._base import Steerer, Strength
from actkit.steer._examples import Examples
from actkit.steer._states import by_layer, states

Experts = Mapping[int, Sequence[int]]
"""Experts by layer."""


@method(source="Dahlke et al. 2025, arXiv:2502.11096")
@dataclass
class MoTE(Steerer):
    """Mixture of tunable experts: find the experts that a behaviour calls for, and turn them.

    Functional token resonance imaging: at the last token of each prompt it is noted which
    experts the routers choose; an expert's score is how much more often it is chosen where the
    behaviour is elicited than where it is not. The experts of the highest scores are turned.

    A strength s multiplies their gate weights by 1 + s before the choice: -1 switches them off
    (logits of -inf), so the next ones take their places. With `force`, a positive strength first
    gives each of them a place in every token's choice, with the weight that goes with that place.
    Weights follow the router's own rule, normalised if it normalises.

    Only routers that choose the largest of a softmax are turned. Differs from the paper: the
    token of resonance is always the prompt's last; strengths between off and on are ours.

    Args:
        num_experts: How many experts to turn, over all layers.
        by: What is compared: "chosen", how often an expert is chosen; "weight", its mean weight.
        force: Give the experts a place where the strength is positive.
        tokens: Where they are turned: "all", or the "prompt" only.

    Attributes:
        scores_: (E,) of each layer: rate with the behaviour less rate without, in [-1, 1].
        rates_: (2, E) of each layer: the two rates.
        experts_: The experts that are turned, by layer.

    Example:
        >>> tune = Tune((2,), strength=-1.0)
        >>> tune(torch.tensor([[[3.0, 1.0, 9.0]]])).softmax(-1).round(decimals=2)
        tensor([[[0.8800, 0.1200, 0.0000]]])
        >>> import actkit as ak
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> config = MixtralConfig(
        ...     vocab_size=9, hidden_size=4, intermediate_size=5, num_hidden_layers=1,
        ...     num_attention_heads=1, num_key_value_heads=1, num_local_experts=3,
        ... )
        >>> net = MixtralForCausalLM(config).eval()
        >>> _ = [p.data.copy_(torch.arange(p.numel()).sin().view_as(p)) for p in net.parameters()]
        >>> model = ak.open(net)
        >>> sides = {"positive": [[1], [4]], "negative": [[5], [8]]}
        >>> MoTE().fit(model, sides).rates_[0]  # how often each of the experts is chosen
        tensor([[0., 1., 1.],
                [1., 0., 1.]])
    """

    grid = (-1.0, -0.75, -0.5, -0.25, 1.0, 3.0)

    num_experts: int = 1
    by: Literal["chosen", "weight"] = "chosen"
    force: bool = False
    tokens: Literal["all", "prompt"] = "all"
    scores_: dict[int, Tensor] = field(init=False, repr=False, default_factory=dict)
    rates_: dict[int, Tensor] = field(init=False, repr=False, default_factory=dict)
    experts_: dict[int, tuple[int, ...]] = field(init=False, repr=False, default_factory=dict)
    _places: dict[int, int] = field(init=False, repr=False, default_factory=dict)

    def _learn(self, model: Model, data: Any) -> dict[str, Any]:
        """Rank the experts; data are prompts with and without the behaviour."""
        if self.by not in ("chosen", "weight"):
            raise InputError(f"by must be 'chosen' or 'weight', got {self.by!r}")
        examples = Examples.of(data)
        sites = model.sites("router_weights.*")
        self._places = {s.depth: (s.unit_shape or (0,))[0] for s in sites}
        with_it = self._rates(model, examples.positive)
        without = self._rates(model, examples.negative)
        self.rates_ = {n: torch.stack([rate_E, without[n]]) for n, rate_E in with_it.items()}
        self.scores_ = {n: rate_E - without[n] for n, rate_E in with_it.items()}
        self._choose()
        return examples.facts()

    def _rates(self, model: Model, prompts: Sequence[Any]) -> dict[int, Tensor]:
        """Return how often, or with what mean weight, each expert is chosen, (E,) by layer."""
        read = states(model, prompts, ["router_logits.*", "router_weights.*"])
        weights = by_layer({k: v for k, v in read.items() if k.startswith("router_weights")})
        logits = by_layer({k: v for k, v in read.items() if k.startswith("router_logits")})
        rates = {}
        for n, logits_NE in logits.items():
            weight_NC = weights[n] if self.by == "weight" else torch.ones_like(weights[n])
            chosen_NC = logits_NE.topk(weight_NC.shape[1]).indices
            rates[n] = torch.zeros_like(logits_NE).scatter(1, chosen_NC, weight_NC).mean(0)
        return rates

    def _choose(self) -> None:
        ranked = sorted(
            ((float(s), n, e) for n, own in self.scores_.items() for e, s in enumerate(own)),
            key=lambda found: -found[0],
        )
        resonant = [(n, e) for score, n, e in ranked if score > 0]
        if not 1 <= self.num_experts <= len(resonant):
            raise InputError(
                f"num_experts must be in 1..{len(resonant)}, the experts that are chosen more with "
                f"the behaviour than without, got {self.num_experts} of {len(ranked)}"
            )
        chosen = sorted(resonant[: self.num_experts])
        self.experts_ = {n: tuple(e for m, e in chosen if m == n) for n, _ in chosen}

    def _act(self, strength: Strength) -> list[Edit]:
        if float(torch.as_tensor(strength).min()) < -1:
            raise EditError(f"gate weights cannot fall below 0: strength >= -1, got {strength}")
        edits = []
        for n, own in self.experts_.items():
            places, rest = self._places[n], len(self.scores_[n]) - len(own)
            if rest < places or (self.force and len(own) > places):
                raise EditError(
                    f"a token needs {places} of {len(self.scores_[n])} experts in layer {n}, "
                    f"which {len(own)} turned ones do not leave: lower num_experts"
                )
            turn = Tune(own, places if self.force else 0, strength=strength)
            edits.append(Edit(f"router_logits.{n}", turn, Where(tokens=self.tokens)))
        return edits


@dataclass(frozen=True, eq=False)
class Tune(StrengthOperation):
    """Multiply the gate weights of some experts by 1 + strength, before the choice.

    Args:
        experts: The experts.
        places: How many are chosen for a token, if the experts are forced among them where the
            strength is positive; 0 if not.
    """

    identifier: ClassVar[str] = "tunable_experts.tune"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer.tunable_experts:Tune",)
    experts: tuple[int, ...]
    places: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Return the (B, T, E) logits x, with log(1 + s) added to those of the experts."""
        s = torch.as_tensor(self.dose(x), dtype=x.dtype, device=x.device)
        listed_E = torch.zeros(x.shape[-1], dtype=torch.bool, device=x.device)
        listed_E[list(self.experts)] = True
        if self.places:
            x = torch.where(s > 0, _placed(x, listed_E, self.places), x)
        return torch.where(listed_E, x + s.log1p(), x)


def _placed(x: Tensor, listed_E: Tensor, places: int) -> Tensor:
    """Return the same logits dealt out anew: the listed come in among the largest `places`.

    No weight appears or is lost, so the weights of the chosen sum to what they did.
    """
    values, order = x.sort(dim=-1, descending=True, stable=True)
    first = x.masked_fill(listed_E, torch.inf).topk(places, dim=-1).indices
    chosen = torch.zeros_like(x, dtype=torch.int8).scatter(-1, first, 1)
    moved = order.gather(-1, chosen.gather(-1, order).argsort(dim=-1, descending=True, stable=True))
    return torch.empty_like(x).scatter(-1, moved, values)
