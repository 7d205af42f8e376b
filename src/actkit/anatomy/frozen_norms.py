"""Norms whose scale is frozen, so that they are linear.

Shapes: B rows, T tokens, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from actkit.core.errors import InputError
from actkit.core.run.recording import Recording
from actkit.core.sites.dry_run import is_norm
from actkit.model import Model

BIG = 1e3
"""Length of a probe's entries: beside it the norm's epsilon is nothing."""


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """A norm as `gain * (x - mean) / scale + shift`, of which the scale alone depends on x.

    Attributes:
        gain_D: What the norm multiplies with.
        shift_D: What it adds.
        centred: Whether it takes the mean off.
    """

    gain_D: Tensor
    shift_D: Tensor
    centred: bool

    def linear(self, x: Tensor) -> Tensor:
        """Return gain * (x - mean)."""
        return self.gain_D * (x - x.mean(-1, keepdim=True) if self.centred else x)

    def read(self, direction: Tensor) -> Tensor:
        """Return the direction v for which x . v is linear(x) . direction."""
        own = self.gain_D * direction
        return own - own.mean(-1, keepdim=True) if self.centred else own

    def scale(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the (..., 1) scale with which the norm made y of x."""
        own = self.linear(x)
        return (own * own).sum(-1, keepdim=True) / (own * (y - self.shift_D)).sum(-1, keepdim=True)


def frozen_norm(norm: nn.Module, like_D: Tensor) -> FrozenNorm:
    """Return the gain, shift and kind of a norm, read off what it makes of three vectors."""
    if isinstance(norm, nn.Identity):
        like_D = like_D.float()
        return FrozenNorm(torch.ones_like(like_D), torch.zeros_like(like_D), centred=False)
    probe_D = 1 - 2 * (torch.arange(len(like_D), device=like_D.device) % 2).to(like_D.dtype)
    probe_D = BIG * (probe_D - probe_D.mean())
    with torch.no_grad():
        made_3D = norm(torch.stack([0 * probe_D, probe_D, probe_D + 2 * BIG])[None])[0]
    shift_D, own_D, moved_D = made_3D.float()
    gain_D = (own_D - shift_D) / (probe_D / probe_D.square().mean().sqrt()).float()
    centred = bool((own_D - moved_D).abs().max() < own_D.abs().max() / 10)
    return FrozenNorm(gain_D, shift_D, centred)


def attention_norm(model: Model, rec: Recording, layer: int) -> FrozenNorm:
    """Return the norm before a layer's attention, from a run that recorded both its sides.

    Raises:
        InputError: No norm of the block makes attention's input of the block's.
    """
    x, y = rec[f"resid_pre.{layer}"], rec[f"attn_in.{layer}"]
    block = model.module.get_submodule(model.sites(f"resid_pre.{layer}")[0].place.path)
    norms = [m for m in block.children() if is_norm(m)]
    for norm in [nn.Identity(), *norms]:
        with torch.no_grad():
            made = norm(x)
        if torch.allclose(made, y, rtol=1e-3, atol=1e-5 * float(y.abs().max())):
            return frozen_norm(norm, x[0, 0])
    raise InputError(f"one norm must stand before attention, none of {len(norms)} of layer {layer}")
