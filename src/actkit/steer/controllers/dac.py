"""Compose properties, each as strongly as it still changes the next token.

Shapes: B batch, T tokens, P properties, S steps, H heads, K head width, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.digest import digest
from actkit.core.edits.controller import Controller, SideRun
from actkit.core.edits.edit import Edit, apply
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.run.context import ForwardContext
from actkit.core.sweep.stream import batches
from actkit.maths.next_token import kl
from actkit.model import Model
from actkit.steer._base import ContrastSteerer, Strength
from actkit.steer._examples import Examples
from actkit.steer._states import by_layer


def nucleus(logits_BV: Tensor, top_p: float) -> Tensor:
    """Return the (B, V) mask of the likeliest tokens, up to the first that brings them above top_p.

    Example:
        >>> nucleus(torch.tensor([[0.1, 0.6, 0.3]]).log(), 0.5)
        tensor([[False,  True, False]])
    """
    probs_BV, order_BV = logits_BV.softmax(-1).sort(descending=True)
    before_BV = torch.nn.functional.pad(probs_BV.cumsum(-1)[:, :-1], (1, 0))
    return torch.zeros_like(logits_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV <= top_p)


def divergence(plain_BV: Tensor, steered_BV: Tensor, top_p: float) -> Tensor:
    """Return KL(plain, steered) in nats, (B,), over the tokens in either one's nucleus."""
    plain_BV, steered_BV = plain_BV.float(), steered_BV.float()
    support_BV = nucleus(plain_BV, top_p) | nucleus(steered_BV, top_p)
    log_p, log_q = (
        logits.masked_fill(~support_BV, -torch.inf).log_softmax(-1)
        for logits in (plain_BV, steered_BV)
    )
    # what has no probability counts nothing: with both logarithms 0, its term is 0
    return kl(*(side.masked_fill(~support_BV, 0.0) for side in (log_p, log_q)))


@dataclass(frozen=True, eq=False)
class Compose(Controller):
    """Add each property's difference of this step, as strongly as `before` found it to matter."""

    identifier: ClassVar[str] = "dac.compose"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer.dac:Compose",)
    steps_PSHK: Tensor
    most: float
    top_p: float

    def before(self, beside: SideRun, memory: dict[str, Any], context: ForwardContext) -> None:
        """Measure what each property alone, at full strength all along, changes at this step."""
        num_properties = len(self.steps_PSHK)
        full_PP = self.most * torch.eye(num_properties, device=context.device)
        memory["alpha"] = torch.zeros_like(full_PP[:1])
        plain_BV = beside.logits("plain")
        alpha_PB = []
        for p in range(num_properties):
            memory["alpha"] = full_PP[p : p + 1]
            kl_B = divergence(plain_BV, beside.logits(f"property {p}"), self.top_p)
            alpha_PB.append(kl_B.clamp(0, self.most))
        memory["alpha"] = torch.stack(alpha_PB, -1)

    def act(self, x: Tensor, memory: dict[str, Any], context: ForwardContext) -> Tensor:
        """Return x + strength sum_p alpha_p d_p."""
        step = min(context.step, self.steps_PSHK.shape[1] - 1)
        sum_BHK: Tensor = torch.tensordot(memory["alpha"].to(x), self.steps_PSHK[:, step], 1)
        return x + self.dose(x) * sum_BHK[:, None]


@method(source="Scalena et al. 2024, arXiv:2406.17563 (BlackboxNLP 2024)")
@dataclass
class DAC(ContrastSteerer):
    """Dynamic activation composition: several properties, each dosed anew at every token.

    A property's vector is, at each step of generation, the mean difference of all attention heads'
    outputs between prompts with and without it (demonstrations that show it and demonstrations
    that do not), each continued greedily. At every step the network runs once as it is and once
    for each property at `most` times its vectors; alpha is the KL divergence of the two next-token
    distributions over their nuclei, at most `most`; what is added is strength * sum_p alpha_p d_p.
    So a step costs 2 + P passes. Differences from the paper: examples are not allowed to end before
    all steps are read, and after the last known step its difference goes on.

    `data` is a mapping from names to the data of one property each, or the data of one.

    Args:
        num_steps: Steps of generation, the prompt's end among them, with vectors of their own.
        most: Strength at which a property is tried, and the largest that it is given.
        top_p: Probability that a nucleus covers.
        batch_size: How many examples to continue at once.

    Attributes:
        differences_: (P, S, H, K) of each layer.

    Example:
        >>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.2, 0.8]])
        >>> divergence(p.log(), q.log(), 0.9).round(decimals=3)  # log 0.5 - (log 0.2 + log 0.8) / 2
        tensor([0.2230])
        >>> import actkit as ak
        >>> dac = DAC(num_steps=1).fit(ak.open("smollm2"), [("I love", "I hate"), ("Good", "Bad")])
        >>> len(dac.edits())  # the heads of every layer
        30
    """

    grid = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5)
    num_steps: int = 6
    most: float = 2.0
    top_p: float = 0.95
    batch_size: int = 32
    differences_: dict[int, Tensor] = field(init=False, repr=False, default_factory=dict)

    def _learn(self, model: Model, data: Any) -> dict[str, Any]:
        if not isinstance(data, Mapping) or {"positive", "negative"} <= set(data):
            return super()._learn(model, data)
        if not data:
            raise InputError("properties must be at least 1, got an empty mapping")
        single = {name: replace(self).fit(model, own) for name, own in data.items()}
        layers = next(iter(single.values())).differences_
        self.differences_ = {
            n: torch.cat([own.differences_[n] for own in single.values()]) for n in layers
        }
        return {name: own.about_["data"] for name, own in single.items() if own.about_}

    def _contrast(self, model: Model, examples: Examples) -> None:
        if self.num_steps < 1:
            raise InputError(f"num_steps must be at least 1, got {self.num_steps}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must lie in (0, 1], got {self.top_p}")
        plus, minus = (self._means(model, s) for s in (examples.positive, examples.negative))
        self.differences_ = {n: (plus[n] - minus[n])[None] for n in plus}

    def _means(self, model: Model, prompts: Sequence[Any]) -> dict[int, Tensor]:
        """Return the mean output (S, H, K) of the heads of each layer at the last token."""
        layers = list(by_layer({site.name: torch.empty(0) for site in model.sites("z.*")}))
        total: dict[int, Tensor] = {}
        for group in track(list(batches(list(prompts), self.batch_size)), "continuing examples"):
            seen: dict[int, list[Tensor]] = {n: [] for n in layers}
            reads = [apply(f"z.{n}", partial(_keep, seen[n])) for n in layers]
            model.generate(group, reads, self.num_steps, min_new_tokens=self.num_steps)
            for n in layers:
                total[n] = total.get(n, 0) + torch.stack(seen[n])
        return {n: (own / len(prompts)).float() for n, own in total.items()}

    def _act(self, strength: Strength) -> list[Edit]:
        key = f"dac-{digest([*self.differences_.values(), self.most, self.top_p])[:12]}"
        end = Where(tokens="last")
        return [
            Edit(f"z.{n}", Compose(d, self.most, self.top_p, key=key, strength=strength), end)
            for n, d in self.differences_.items()
        ]


def _keep(seen: list[Tensor], x_BTHK: Tensor) -> Tensor:
    seen.append(x_BTHK[:, -1].double().sum(0))
    return x_BTHK
