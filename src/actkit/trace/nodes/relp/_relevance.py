"""Rules of layer-wise relevance propagation, as changes of what the backward pass sees.

Each rule keeps every forward value, to the bit, and changes gradients alone. Linear maps keep
their plain gradient (the 0-rule).

Shapes: D width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from actkit.anatomy.linear_map import is_linear
from actkit.anatomy.norm import is_row_norm
from actkit.core.edits.edit import Edit, apply
from actkit.core.errors import InputError
from actkit.core.run.attention import with_gradient_of
from actkit.model import Model

SMALL = 1e-6
"""Where an activation's input is smaller, phi(z) / z is taken there instead."""


@dataclass(frozen=True)
class Change:
    """What a rule does to a network: modules that stand in for others, and edits."""

    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    edits: Sequence[Edit] = ()


Rule = Callable[[Model], Change]


class ConstantNorm(nn.Module):
    """A norm whose divisor counts as a constant: y = (x - mean) (gain / std).detach() + bias."""

    def __init__(self, norm: Any) -> None:
        """Keep the norm, which gives the values."""
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm's own values."""
        norm, wide = self.norm, x.float()
        if isinstance(norm, nn.LayerNorm):
            axes = tuple(range(-len(norm.normalized_shape), 0))
            wide = wide - wide.mean(axes, keepdim=True)
            gain, eps = norm.weight, norm.eps
        else:
            axes, eps = (-1,), getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0))
            gain = norm(torch.ones_like(x[..., :1, :])) * (1 + eps) ** 0.5
        scale = (wide.pow(2).mean(axes, keepdim=True) + eps).rsqrt()
        explicit = wide * (scale if gain is None else gain * scale).detach()
        return with_gradient_of(explicit.to(x.dtype), norm(x))


class ConstantRatio(nn.Module):
    """An activation function as a factor that counts as a constant: z (phi(z) / z).detach()."""

    def __init__(self, activation: nn.Module) -> None:
        """Keep the activation, which gives the values."""
        super().__init__()
        self.activation = activation

    def forward(self, z: Tensor) -> Tensor:
        """Return phi(z)."""
        away = torch.where(z.abs() < SMALL, torch.full_like(z, SMALL), z).detach()
        return with_gradient_of(z * (self.activation(away) / away), self.activation(z))


def norm_rule(model: Model) -> Change:
    """LN-rule: the divisor of every LayerNorm and RMSNorm is a constant."""
    return Change({p: ConstantNorm(m) for p, m in model.module.named_modules() if is_row_norm(m)})


def identity_rule(model: Model) -> Change:
    """Identity rule: an activation passes relevance as phi(z) / z times its input."""
    named = model.module.named_modules()
    return Change({p: ConstantRatio(m) for p, m in named if is_activation(m)})


def half_rule(model: Model) -> Change:
    """Half rule: of a gated product each factor passes half of the relevance."""
    gated = any(s.point == "mlp_gate" for s in model.sites())
    return Change(edits=[apply("mlp_hidden.*", lambda x: with_gradient_of(x / 2, x))] * gated)


def attention_rule(model: Model) -> Change:
    """AH-rule: attention patterns are constants, so that relevance passes through values alone.

    Queries and keys are cut off, which holds for every kernel and changes none of its bits.
    """
    return Change(edits=[apply("q.*", Tensor.detach), apply("k.*", Tensor.detach)])


RULES: Mapping[str, Rule] = {
    "norm": norm_rule,
    "activation": identity_rule,
    "gate": half_rule,
    "attention": attention_rule,
}
"""The rules that have a name, in the order of a forward pass."""


def as_rules(rules: Sequence[str | Rule]) -> list[Rule]:
    """Return rules, by name or as they are.

    Raises:
        InputError: A name is unknown.
    """
    if unknown := [r for r in rules if not callable(r) and r not in RULES]:
        raise InputError(f"rules must be of {', '.join(RULES)} or functions, got {unknown}")
    return [r if callable(r) else RULES[r] for r in rules]


@contextmanager
def propagating(model: Model, rules: Sequence[str | Rule]) -> Iterator[list[Edit]]:
    """Let rules shape gradients; yields the edits that runs inside must also be given.

    Raises:
        InputError: Some module of the network has no rule.
        SiteError: The network has no queries and keys where the AH-rule needs them.
    """
    chosen = as_rules(rules)
    if chosen:
        _check(model)
    changes = [rule(model) for rule in chosen]
    modules = {path: m for change in changes for path, m in change.modules.items()}
    with model.replaced(modules):
        yield [edit for change in changes for edit in change.edits]


def is_activation(module: nn.Module) -> bool:
    """Say whether a module is an activation function of one number with phi(0) = 0."""
    home = type(module).__module__
    if home not in ("transformers.activations", "torch.nn.modules.activation"):
        return False
    plain = not any(True for _ in module.parameters())
    return plain and bool((module(torch.zeros(2)) == 0).all())


def _is_linear(module: nn.Module) -> bool:
    passes = is_linear(module) or isinstance(module, nn.Embedding | nn.Dropout | nn.Identity)
    return passes or type(module).__name__.endswith("RotaryEmbedding")


def _check(model: Model) -> None:
    """Refuse a network with a module that computes something for which there is no rule."""
    for path, module in model.module.named_modules():
        works = not any(True for _ in module.children()) or any(
            True for _ in module.parameters(recurse=False)
        )
        if works and not (_is_linear(module) or is_row_norm(module) or is_activation(module)):
            raise InputError(
                f"relevance needs a rule for every module, got {type(module).__name__} at "
                f"{path!r}, which is no linear map, norm or activation with phi(0) = 0"
            )
