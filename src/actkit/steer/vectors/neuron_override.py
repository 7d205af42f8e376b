"""Set chosen MLP neurons to a value, whatever the input makes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.digest import digest
from actkit.core.edits.controller import StrengthOperation
from actkit.core.edits.edit import Edit
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.steer._base import Steerer, Strength

Neurons = Mapping[int, Sequence[int]]
"""Neurons by layer."""


@method(source="Haon et al. 2025, arXiv:2509.00328, section 3")
@dataclass
class NeuronOverride(Steerer):
    """Steer a language or vision-language-action model by overriding a cluster of neurons.

    An MLP returns sum_i a_i(x) w_i. The activations a_i of the cluster are set to the strength
    times `value` where the down projection reads them; nothing is added to what was there. A
    strength of 0 leaves them alone; to deactivate the cluster, set `value` to 0. As in the paper.

    It is fitted on the neurons: a mapping of layers to units, as `ak.get("value_vectors")`
    gives it.

    Args:
        value: alpha, what the activations are set to at strength 1; about 5 to 20 is useful.
        tokens: Where, as in `ak.Where`; for an action model the generated tokens may do.

    Attributes:
        neurons_: The neurons, by layer.

    Example:
        >>> import torch
        >>> Override(5.0, strength=2.0)(torch.tensor([[[0.1, -3.0]]]))
        tensor([[[10., 10.]]])
        >>> import actkit as ak
        >>> override = NeuronOverride().fit(ak.open("smollm2"), {3: [5, 7]})
        >>> [edit.site for edit in override.edits()]
        ['mlp_hidden.3']
    """

    grid = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)

    value: float = 10.0
    tokens: Any = "all"
    neurons_: dict[int, tuple[int, ...]] = field(init=False, repr=False, default_factory=dict)

    def _learn(self, model: Model, data: Neurons) -> dict[str, Any]:
        if not isfinite(self.value):
            raise InputError(f"the value must be finite, got {self.value}")
        if not isinstance(data, Mapping) or not any(len(own) for own in data.values()):
            raise InputError(f"neurons must be a mapping of layers to some units, got {data!r}")
        neurons = {int(n): tuple(sorted(map(int, own))) for n, own in data.items() if len(own)}
        for n, own in neurons.items():
            (width,) = model.sites(f"mlp_hidden.{n}")[0].unit_shape or (0,)
            if own[0] < 0 or own[-1] >= width or len({*own}) < len(own):
                raise InputError(f"units of layer {n} must differ and be in 0..{width - 1}: {own}")
        self.neurons_ = neurons
        return {"neurons": sum(map(len, neurons.values())), "sha256": digest(neurons)}

    def _act(self, strength: Strength) -> list[Edit]:
        override = Override(self.value, strength=strength)
        return [
            Edit(f"mlp_hidden.{n}", override, Where(tokens=self.tokens, units=own))
            for n, own in self.neurons_.items()
        ]


@dataclass(frozen=True, eq=False)
class Override(StrengthOperation):
    """Put strength * value in place of what is there, in rows whose strength is not 0."""

    identifier: ClassVar[str] = "neuron_override.override"
    formerly: ClassVar[tuple[str, ...]] = ("actkit.steer.neuron_override:Override",)
    value: float

    def __call__(self, x: Tensor) -> Tensor:
        """Return strength * value, spread over x's shape."""
        s = torch.as_tensor(self.dose(x), dtype=x.dtype, device=x.device)
        return torch.where(s != 0, s * self.value, x)
