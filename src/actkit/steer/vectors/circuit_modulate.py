"""Steer only the neurons and heads of a circuit, each by its own difference between two sides.

Shapes: N pairs, F neurons, H heads, K head width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit, add
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.steer._base import ContrastSteerer, Strength
from actkit.steer._examples import Examples
from actkit.steer._states import states

Part = tuple[int, int]


@method(source="Wang et al. 2025, arXiv:2510.11328")
@dataclass
class CircuitModulate(ContrastSteerer):
    """Add what changes in a circuit's neurons and heads, at these alone.

    Pairs hold the same context under the wanted concept and under another one; the differences
    of the neurons (what the MLP's last map reads) and of the heads' outputs at the last token,
    mean over pairs, are added from the prompt's end on. As in the paper, where each of a context's
    concepts is held against their mean: give each pair of concepts once for the same.

    Args:
        neurons: (layer, neuron) of each neuron, as `component_contrib` finds them; may be none.
        heads: (layer, head) of each head.

    Attributes:
        differences_: At each site what is added: (F,) with zeros but at the neurons, (H, K)
            with zeros but at the heads.

    Example:
        >>> import actkit as ak
        >>> m = ak.open("smollm2")
        >>> few = CircuitModulate(neurons=[(20, 7)], heads=[(20, 3), (21, 0)])
        >>> [e.site for e in few.fit(m, [("I love it", "I hate it")]).edits(1.0)]
        ['mlp_hidden.20', 'z.20', 'z.21']
    """

    neurons: Sequence[Part]
    heads: Sequence[Part] = ()
    differences_: dict[str, Tensor] = field(init=False, repr=False, default_factory=dict)

    def _contrast(self, model: Model, examples: Examples) -> None:
        examples.check_paired()
        chosen = {**_by_site("mlp_hidden", self.neurons), **_by_site("z", self.heads)}
        if not chosen:
            raise InputError("a circuit needs neurons or heads, got none")
        for site, size in _sizes(model, chosen).items():
            if bad := [i for i in chosen[site] if not 0 <= i < size]:
                raise InputError(f"{site} has components 0..{size - 1}, got {bad}")
        plus, minus = (states(model, side, [*chosen])
                       for side in (examples.positive, examples.negative))  # fmt: skip
        self.differences_ = {}
        for site, index in chosen.items():
            mean = (plus[site] - minus[site]).mean(0)
            kept = torch.zeros_like(mean)
            kept[index] = mean[index]
            self.differences_[site] = kept

    def _act(self, strength: Strength) -> list[Edit]:
        edits = []
        for site, difference in self.differences_.items():
            if difference.dim() == 1:
                edits.append(add(site, difference, strength, Where(tokens="last")))
                continue
            for head in difference.any(-1).nonzero()[:, 0].tolist():
                where = Where(tokens="last", heads=head)
                edits.append(add(site, difference[head], strength, where))
        return edits


def _by_site(point: str, parts: Sequence[Part]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for layer, index in sorted(parts):
        found.setdefault(f"{point}.{layer}", []).append(index)
    return found


def _sizes(model: Model, sites: Mapping[str, object]) -> dict[str, int]:
    """Return the number of neurons or heads at each site."""
    shapes = {name: model.sites(name)[0].unit_shape or (0,) for name in sites}
    return {name: shape[0] for name, shape in shapes.items()}
