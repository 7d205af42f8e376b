"""A small change of a network's parameters, of a chosen size and in a chosen direction."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from actkit.core.errors import InputError


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training may change, by name."""
    return {n: p for n, p in network.named_parameters() if p.requires_grad}


@dataclass(frozen=True)
class Perturbation:
    """What is added to a network's trainable parameters, all of them one vector.

    Args:
        norm: L2 norm of what is added (>= 0).
        direction: None draws Gaussian noise with each tensor's own standard deviation at the
            first step; a function that returns the loss of one extra batch takes its gradient; a
            mapping from names of parameters to tensors is taken as it is, others stay.
        share: Share of the parameters that are touched, drawn at random (0 < share <= 1).
        seed: Of the noise and of the choice of parameters.
    """

    norm: float
    direction: Callable[[nn.Module], Tensor] | Mapping[str, Tensor] | None = None
    share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not (self.norm >= 0 and 0 < self.share <= 1):
            raise InputError(
                f"norm must be >= 0 and share in (0, 1], got {self.norm} and {self.share}"
            )

    @torch.no_grad()
    def add_to(self, network: nn.Module, stds: Mapping[str, float]) -> None:
        """Add it in place; `stds` are the standard deviations of the parameters at the start."""
        if not self.norm:
            return
        named = trainable(network)
        gen = torch.Generator().manual_seed(self.seed)
        vector = torch.cat(
            [d.flatten().double().cpu() for d in self._direction(network, stds, gen)]
        )
        untouched = torch.randperm(len(vector), generator=gen)[round(self.share * len(vector)) :]
        vector[untouched] = 0
        length = vector.norm()
        if not (0 < length < torch.inf):
            raise InputError(f"a perturbation must have a direction, got one of norm {length:g}")
        vector *= self.norm / length
        start = 0
        for p in named.values():
            p.add_(vector[start : start + p.numel()].view_as(p).to(p))
            start += p.numel()

    def _direction(
        self, network: nn.Module, stds: Mapping[str, float], gen: torch.Generator
    ) -> list[Tensor]:
        named = trainable(network)
        if self.direction is None:
            return [torch.randn(p.shape, generator=gen) * stds[n] for n, p in named.items()]
        if isinstance(self.direction, Mapping):
            given = {n: self.direction.get(n, torch.zeros_like(p)) for n, p in named.items()}
            wrong = [
                n for n in self.direction if n not in named or given[n].shape != named[n].shape
            ]
            if wrong:
                raise InputError(f"a direction must fit the parameters, {wrong[0]!r} does not")
            return list(given.values())
        twin = copy.deepcopy(network)  # the loss may move statistics of batches and random states
        with torch.random.fork_rng(), torch.enable_grad():
            params = list(trainable(twin).values())
            return list(torch.autograd.grad(self.direction(twin), params, materialize_grads=True))
