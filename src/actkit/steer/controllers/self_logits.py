"""Mix the logits of the last blocks before the final one into the network's own.

Shapes: B batch, T tokens, D width.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from actkit.catalog import method
from actkit.core.digest import digest
from actkit.core.edits.controller import Controller
from actkit.core.edits.edit import Edit, scale
from actkit.core.errors import InputError
from actkit.core.run.context import ForwardContext
from actkit.model import Model
from actkit.steer._base import Steerer, Strength

_EPS = ("eps", "variance_epsilon", "epsilon")
"""What norms call it."""
_CLOSE = 1e-2
"""Relative error up to which two results are the same, bfloat16 included."""


@method(source="Li et al. 2025, arXiv:2502.03628, section 3")
@dataclass
class SelfLogitsAugmentation(Steerer):
    """o = (1 - gamma) o_L + gamma mean_l o_l, with o_l = Head(Norm(h_l)) of a window of blocks.

    The other half of the paper is `vista`. As in the paper, but written at another place: where
    the head is affine, a mean of logits is the head of a mean of normed states, so they are mixed
    at `final_norm`, in front of the head. An edit file holds the norm's weights and no head.

    `fit` takes a few inputs, on which it checks that the norm is the network's own and that the
    head is affine.

    Args:
        window: How many blocks before the final one are mixed in (>= 1).
        gamma: Their weight at strength 1.

    Attributes:
        layers_: The window.
        norm_: Of the final norm: weight (D,), bias (D,), whether it is `centred` as a LayerNorm
            is, and eps.

    Example:
        >>> import actkit as ak
        >>> m = ak.open("smollm2")
        >>> augmented = SelfLogitsAugmentation(window=2).fit(m, ["The sky is blue."])
        >>> [edit.site for edit in augmented.edits()]
        ['resid_post.27', 'resid_post.28', 'final_norm']
    """

    grid: ClassVar[tuple[float, ...]] = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
    window: int = 5
    gamma: float = 0.3
    layers_: tuple[int, ...] = field(init=False, repr=False, default=())
    norm_: dict[str, Any] = field(init=False, repr=False, default_factory=dict)

    def _learn(self, model: Model, data: Any) -> dict[str, Any]:
        last = len(model.sites("resid_post.*")) - 1
        if not 1 <= self.window <= last:
            raise InputError(
                f"the window must have 1 to {last} blocks before the final one, got {self.window}"
            )
        self.layers_ = tuple(range(last - self.window, last))
        path = model.sites("final_norm")[0].place.path
        rec = model.run(data, [f"resid_post.{last}", "final_norm"])
        h, expected = rec[f"resid_post.{last}"], rec["final_norm"]
        self.norm_ = _weights(model.module.get_submodule(path), h.shape[-1])
        normed = Mix(**self.norm_, key="").norm(h)
        _check(normed, expected, "a LayerNorm or an RMSNorm in front of the head")
        none, half, whole = (_scaled_logits(model, data, share) for share in (0.0, 0.5, 1.0))
        _check(none + whole, 2 * half, "a head that is affine")
        return {"sha256": digest(data)}

    def _act(self, strength: Strength) -> list[Edit]:
        gamma = strength * self.gamma
        key = f"self-logits-{digest([self.norm_, self.layers_])[:12]}"
        mix = Mix(**self.norm_, layers=self.layers_, strength=gamma, key=key)
        watched = [Watch(layer, strength=gamma, key=key) for layer in self.layers_]
        return [
            *(Edit(f"resid_post.{watch.layer}", watch) for watch in watched),
            Edit("final_norm", mix),
        ]


@dataclass(frozen=True, eq=False)
class Watch(Controller):
    """Keep what a block returned."""

    identifier: ClassVar[str] = "self_logits.watch"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer.self_logits:Watch",)
    remembers: ClassVar[bool] = False
    layer: int

    def act(self, x: Tensor, memory: dict[str, Any], context: ForwardContext) -> Tensor:
        """Return x, unchanged."""
        memory[f"block {self.layer}"] = x
        return x


@dataclass(frozen=True, eq=False)
class Mix(Controller):
    """Mix the normed states of a window of blocks into the final one's."""

    identifier: ClassVar[str] = "self_logits.mix"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer.self_logits:Mix",)
    remembers: ClassVar[bool] = False
    weight: Tensor
    bias: Tensor
    centred: bool
    eps: float
    layers: tuple[int, ...] = ()

    def act(self, x: Tensor, memory: dict[str, Any], context: ForwardContext) -> Tensor:
        """Return (1 - gamma) x + gamma mean_l Norm(h_l)."""
        early = torch.stack([self.norm(memory[f"block {layer}"]) for layer in self.layers]).mean(0)
        return torch.lerp(x, early, self.dose(x))

    def norm(self, h: Tensor) -> Tensor:
        """Return what the final norm makes of h."""
        wide = h.to(torch.promote_types(h.dtype, torch.float32))
        wide = wide - wide.mean(-1, keepdim=True) if self.centred else wide
        unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * unit.to(h.dtype) + self.bias


def _weights(norm: nn.Module, width: int) -> dict[str, Any]:
    """Return what a norm multiplies and adds, by asking it: some add 1 to the weight they hold."""
    eps = next((getattr(norm, name) for name in _EPS if hasattr(norm, name)), None)
    if eps is None:
        raise InputError(f"the final norm must have an eps, got {type(norm).__name__}")
    zeros_D = next(norm.parameters(), torch.zeros(())).new_zeros(width)
    large = 2.0**14  # eps does not count beside it, and float16 holds it
    either_D = large * (1 - 2 * (torch.arange(width, device=zeros_D.device) % 2)).to(zeros_D)
    with torch.no_grad():
        bias_D = norm(zeros_D)
        kind: dict[str, Any] = {
            "centred": bool(torch.equal(norm(zeros_D + large), bias_D)),
            "eps": float(eps),
        }
        unit_D = Mix(torch.ones_like(zeros_D), zeros_D, **kind, key="").norm(either_D)
        weight_D = (norm(either_D) - bias_D) / unit_D
    return {"weight": weight_D, "bias": bias_D, **kind}


def _scaled_logits(model: Model, data: Any, share: float) -> Tensor:
    rec = model.run(data, edits=[scale("final_norm", share)], logits=True)
    return rec.logits


def _check(found: Tensor, expected: Tensor, rule: str) -> None:
    error = float((found - expected).norm() / expected.norm())
    if not error <= _CLOSE:
        raise InputError(f"logits are mixed with {rule}, got a relative error of {error:.2g}")
