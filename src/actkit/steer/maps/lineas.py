"""Train affine maps of single units, all layers together, towards the states of one side.

Shapes: N sources, M targets, D width; maps are (2, D), slope - 1 and bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import cos, isfinite, pi
from typing import Any, ClassVar

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.model import Model
from actkit.steer._base import ContrastSteerer, Strength
from actkit.steer._examples import Examples
from actkit.steer.maps._transport import Transport, coupled, joined, pooled_at, pooled_states


@method(source="Rodriguez et al. 2025, arXiv:2503.10679, section 3")
@dataclass
class LinEAS(ContrastSteerer):
    """End-to-end activation steering: affine maps under one distributional loss of all layers.

    The negative side runs with all maps in place. The loss is the sum over sites and units of
    the squared 1-d Wasserstein distance to the positive side, unedited; a unit's sample is its
    mean over an example's tokens, of texts without the first, whose massive activation would
    hide all others. The sides need no pairs. Strength 1 is the whole way.

    Two choices differ from the paper: steps are scaled by one second moment for each site, which
    keeps the proximal step in closed form, and there are fewer by default, 8 where the paper
    takes 1000, so that 32 short texts on each side take under a minute with SmolLM2 on a CPU.

    Args:
        sites: Where maps act; the outputs of all norms before attention and MLPs by default.
        sparsity: Weight of the sparse group lasso, which draws slopes to 1 and biases to 0, in
            units of the loss; 0 is none.
        num_steps: Proximal steps.
        learning_rate: Length of the first steps, as a share of the distance (root mean square
            over a site's units) at first; it falls to 0 along half a cosine.
        batch_size: Examples of each side in a step, or as many as there are.
        seed: Of the draws.

    Attributes:
        maps_: The map of each site.
        losses_: The loss before each step.

    Example:
        >>> import actkit as ak
        >>> m = ak.open(torch.nn.Sequential(torch.nn.Identity()))
        >>> sides = {"negative": [torch.tensor([[-1.0], [1.0]])]}
        >>> sides |= {"positive": [torch.tensor([[7.0], [3.0]])]}  # 2 z + 5 in another order
        >>> eas = LinEAS(sites="0:out", num_steps=300, learning_rate=0.1).fit(m, sides)
        >>> m.run(torch.tensor([[1.0]]), edits=eas.edits(1.0)).output.round(decimals=2)
        tensor([[7.]])
    """

    sites: str | Sequence[str] = ("attn_in.*", "mlp_in.*")
    sparsity: float = 0.0
    num_steps: int = 8
    learning_rate: float = 0.015
    batch_size: int = 32
    seed: int = 0
    maps_: dict[str, Transport] = field(init=False, repr=False, default_factory=dict)
    losses_: list[float] = field(init=False, repr=False, default_factory=list)
    grid: ClassVar[tuple[float, ...]] = (0.25, 0.5, 0.75, 1.0)

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be trained with."""
        if self.num_steps < 1 or self.batch_size < 2 or not self.learning_rate > 0:
            raise InputError(
                "training needs steps, batches of 2 or more and a positive rate, got "
                f"{self.num_steps}, {self.batch_size} and {self.learning_rate}"
            )
        if not self.sparsity >= 0:
            raise InputError(f"the sparsity must be 0 or more, got {self.sparsity}")

    def _contrast(self, model: Model, examples: Examples) -> None:
        targets, images = pooled_states(model, examples.positive, self.sites)
        sources, gen = joined(examples.negative), torch.Generator().manual_seed(self.seed)
        maps = {s: torch.zeros(2, *b.shape[1:]).to(b).requires_grad_() for s, b in targets.items()}
        steps: dict[str, _Steps] = {}
        self.losses_ = []
        for step in track(range(self.num_steps), "training maps"):
            edits = [Edit(s, Transport(1 + p[0], p[1], pooled=images[s])) for s, p in maps.items()]
            batch = _drawn(sources, self.batch_size, gen)
            rec = model.run(batch, record=self.sites, edits=edits, grad=True)
            picked = _picked(len(next(iter(targets.values()))), self.batch_size, gen)
            far = {s: wasserstein(pooled_at(rec, s), b[picked]) for s, b in targets.items()}
            steps = steps or {s: _Steps(own, far[s].item()) for s, own in maps.items()}
            loss = torch.stack(list(far.values())).sum()
            self.losses_.append(_checked(loss))
            rate = self.learning_rate * (1 + cos(pi * step / self.num_steps)) / 2
            for own, grad in zip(
                steps.values(), torch.autograd.grad(loss, list(maps.values())), strict=True
            ):
                own.take(grad, rate, self.sparsity)
        learnt = {site: own.detach() for site, own in maps.items()}
        self.maps_ = {s: Transport(1 + p[0], p[1], pooled=images[s]) for s, p in learnt.items()}

    def _act(self, strength: Strength) -> list[Edit]:
        return [Edit(s, replace(found, strength=strength)) for s, found in self.maps_.items()]


def wasserstein(source_ND: Tensor, target_MD: Tensor) -> Tensor:
    """Return the squared 2-Wasserstein distance of each unit's samples, summed over units."""
    source_KD, target_KD, share_K1 = coupled(source_ND, target_MD)
    cost: Tensor = (share_K1 * (source_KD - target_KD) ** 2).sum()
    return cost


def shrunk(map_2D: Tensor, by: float) -> Tensor:
    """Return the proximal point of `by` times the sparse group lasso, one group for all entries."""
    soft_2D = map_2D.sign() * (map_2D.abs() - by).clamp_min(0)
    size = soft_2D.norm().clamp_min(torch.finfo(soft_2D.dtype).tiny)
    found: Tensor = soft_2D * (1 - by * map_2D.numel() ** 0.5 / size).clamp_min(0)
    return found


class _Steps:
    """Proximal steps of one site's map with momentum, as long as its units are far at first."""

    def __init__(self, map_2D: Tensor, far: float) -> None:
        self.map_2D, self.unit = map_2D, (far / map_2D[0].numel()) ** 0.5
        self.first_2D, self.second, self.count = torch.zeros_like(map_2D), 0.0, 0

    def take(self, grad_2D: Tensor, rate: float, sparsity: float) -> None:
        """Step against the gradient, then shrink as far as the step was scaled."""
        self.count += 1
        self.first_2D = 0.9 * self.first_2D + 0.1 * grad_2D
        self.second = 0.99 * self.second + 0.01 * float((grad_2D**2).mean())
        scale = rate * self.unit / ((self.second / (1 - 0.99**self.count)) ** 0.5 + 1e-12)
        moved_2D = self.map_2D.detach() - scale * self.first_2D / (1 - 0.9**self.count)
        self.map_2D.data.copy_(shrunk(moved_2D, scale * sparsity))


def _picked(num: int, size: int, gen: torch.Generator) -> Tensor:
    return torch.randperm(num, generator=gen)[:size]


def _drawn(inputs: Any, size: int, gen: torch.Generator) -> Any:
    """Return some of the inputs of a joined batch."""
    if isinstance(inputs, tuple):
        picked = _picked(len(inputs[0]), size, gen)
        return tuple(part[picked] for part in inputs)
    picked = _picked(len(inputs), size, gen)
    return inputs[picked] if isinstance(inputs, Tensor) else [inputs[i] for i in picked.tolist()]


def _checked(loss: Tensor) -> float:
    if not isfinite(number := loss.item()):
        raise InputError(
            f"the loss must stay finite, got {number}: take a lower learning rate, or examples "
            "whose states are finite"
        )
    return number
