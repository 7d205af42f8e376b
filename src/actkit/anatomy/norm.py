"""The gain of a norm, read off what it makes of vectors, and norms whose scale is frozen.

So it does not matter how a norm keeps its gain (Gemma's keeps it less 1) or whether it adds a bias.

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


def is_row_norm(module: nn.Module) -> bool:
    """Say whether a norm divides each row by the row's own size: a LayerNorm or an RMSNorm.

    `actkit.core.sites.dry_run.is_norm` asks less, "norm" anywhere in the name of the class, which
    tells where norms stand. BatchNorm and GroupNorm are norms too, but divide by another size.
    """
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")


def norm_gain(norm: nn.Module, width: int, like: Tensor | None = None) -> Tensor:
    """Return the (D,) gain of a norm, off by its epsilon: gain / sqrt(1 + epsilon).

    It is half of the difference between what the norm makes of a vector of +1 and -1 and of its
    negative. `frozen_norm` also tells the shift, and whether the mean is taken off.

    Args:
        norm: A LayerNorm or RMSNorm.
        width: D.
        like: Of the dtype and on the device that the norm shall be asked in; those of its own
            parameters if None.

    Example:
        >>> norm_gain(nn.LayerNorm(4, eps=0), 4)
        tensor([1., 1., 1., 1.])
    """
    beside = next(norm.parameters(), torch.empty(0)) if like is None else like
    signs_D = _signs(width, beside)
    with torch.no_grad():
        up_D, down_D = norm(torch.stack([signs_D, -signs_D])[None])[0]
    gain_D: Tensor = (up_D - down_D) / 2 * signs_D
    return gain_D


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
    probe_D = _signs(len(like_D), like_D)
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


def _signs(width: int, like: Tensor) -> Tensor:
    """Return (D,) entries of +1 and -1 in turn."""
    return 1 - 2 * (torch.arange(width, device=like.device) % 2).to(like.dtype)
