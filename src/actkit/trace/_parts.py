"""Which parts of a network are asked: heads, layers at positions, neurons.

Shapes: L layers, B batch, T tokens, H heads, K head width, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from actkit.core.edits.where import Where
from actkit.core.errors import InputError, SiteError
from actkit.core.sites.site import Site
from actkit.core.sites.site_names import layer_of, plain_name
from actkit.model import Model

AXES = ("layer", "position", "head", "unit")


@dataclass(frozen=True)
class Part:
    """One part: a site, and the one position, head or unit of it that is meant."""

    site: str
    position: int | None = None
    head: int | None = None
    unit: int | None = None

    def __post_init__(self) -> None:
        """Call the site by actkit's own name, since methods tell points apart by it."""
        object.__setattr__(self, "site", plain_name(self.site))

    def __str__(self) -> str:
        """Return the name: z.5.3, resid_pre.4@7, mlp_hidden.2[81]."""
        head = "" if self.head is None else f".{self.head}"
        unit = "" if self.unit is None else f"[{self.unit}]"
        position = "" if self.position is None else f"@{self.position}"
        return f"{self.site}{head}{unit}{position}"

    @property
    def layer(self) -> int:
        """Return the block's index."""
        return layer_of(self.site)

    @property
    def where(self) -> Where:
        """Return where an edit of this part acts."""
        tokens = "all" if self.position is None else self.position
        return Where(tokens=tokens, heads=self.head, units=self.unit)


@dataclass(frozen=True)
class Parts:
    """One point in every block, and which of its axes are taken apart.

    Attributes:
        point: As in `m.sites()`: "resid_pre", "attn_out", "mlp_out", "z", "mlp_hidden", ...
        axes: What is told apart besides the layer, in the order of "position", "head", "unit".
    """

    point: str
    axes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse unknown axes."""
        if list(self.axes) != [a for a in AXES[1:] if a in self.axes]:
            raise InputError(f"axes must be of {AXES[1:]} in this order, got {self.axes}")

    def __str__(self) -> str:
        """Return the name, the short one where there is one."""
        named = [name for name, parts in PARTS.items() if parts == self]
        return named[0] if named else f"{self.point} by {' and '.join(('layer', *self.axes))}"

    def sites(self, model: Model) -> list[Site]:
        """Return the point's sites, one for each block.

        Raises:
            SiteError: The network lacks the point.
        """
        return model.sites(f"{self.point}.*")

    def shape(self, model: Model, num_tokens: int) -> tuple[int, ...]:
        """Return the shape of the scores: layers, then the axes that are told apart.

        Raises:
            SiteError: The point has no heads, and heads are asked.
        """
        sites = self.sites(model)
        unit_shape = sites[0].unit_shape
        if unit_shape is None or ("head" in self.axes and len(unit_shape) < 2):
            raise SiteError(f"{self.point} has no heads to take apart, its rows are {unit_shape}")
        sizes = {"position": num_tokens, "head": unit_shape[0], "unit": unit_shape[-1]}
        return (len(sites), *(sizes[a] for a in self.axes))

    def each(self, model: Model, num_tokens: int) -> Iterator[Part]:
        """Yield the parts in the order of the scores' entries."""
        sizes = self.shape(model, num_tokens)
        names = [site.name for site in self.sites(model)]
        for layer, *index in product(*map(range, sizes)):
            yield Part(names[layer], **dict(zip(self.axes, index, strict=True)))

    def at(self, model: Model, index: tuple[int, ...]) -> Part:
        """Return the part of one entry of the scores."""
        layer, *rest = index
        return Part(self.sites(model)[layer].name, **dict(zip(self.axes, rest, strict=True)))

    def summed(self, x: Tensor) -> Tensor:
        """Sum (B, T, ...) products over all that is not told apart, mean over the rows."""
        keep = {"position": 1, "head": 2 if x.dim() == 4 else None, "unit": x.dim() - 1}
        kept = [keep[a] for a in self.axes]
        rest = [axis for axis in range(1, x.dim()) if axis not in kept]
        mean = x.mean(0, keepdim=True)
        return (mean.sum(rest, keepdim=True) if rest else mean).reshape(
            [x.shape[axis] for axis in kept if axis is not None]
        )


PARTS = {
    "resid": Parts("resid_pre", ("position",)),
    "attn": Parts("attn_out", ("position",)),
    "mlp": Parts("mlp_out", ("position",)),
    "heads": Parts("z", ("head",)),
    "attns": Parts("attn_out"),
    "mlps": Parts("mlp_out"),
    "neurons": Parts("mlp_hidden", ("unit",)),
}
"""The usual ones, by name: those in the singular tell positions apart."""


def as_parts(parts: "str | Parts") -> Parts:
    """Return parts, or the usual ones of a name."""
    if isinstance(parts, Parts):
        return parts
    if parts not in PARTS:
        raise InputError(f"parts must be one of {', '.join(PARTS)} or Parts, got {parts!r}")
    return PARTS[parts]


def beside(part: Part, names: list[str], window: int) -> list[Part]:
    """Return the part with its neighbours in the layers of a window around it."""
    middle, half = names.index(part.site), window // 2
    return [replace(part, site=n) for n in names[max(0, middle - half) : middle + half + 1]]


def filled(values: list[Tensor] | Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return scores in their shape as float32 on the CPU."""
    flat: Any = torch.stack(values) if isinstance(values, list) else values
    out: Tensor = flat.detach().float().cpu().reshape(shape)
    return out
