"""How far two trainings part after one small perturbation, by the step at which it comes.

Shapes: N rows, D width.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.model import Model
from actkit.read._base import Experiment
from actkit.read._paired_sums import Sums, alignment
from actkit.read.training.butterfly._alignment import ALIGNMENTS, hidden_axes, permuted
from actkit.read.training.butterfly._interpolation import Gap, Loss, gap, vector
from actkit.read.training.butterfly._perturbation import Perturbation, trainable

Train = Callable[[], Iterator[tuple[int, nn.Module]]]


@dataclass(frozen=True, slots=True)
class Divergence:
    """Two trainings at their end, of which one was perturbed.

    Attributes:
        step: When it was perturbed.
        plain: The gap between the two networks as they are.
        aligned: The gap after the perturbed network's units are permuted, by alignment.
        cka: For each site linear CKA of the two networks' activations, in [0, 1]; NaN where one
            of them is constant.
    """

    step: int
    plain: Gap
    aligned: dict[str, Gap]
    cka: dict[str, float]


@method(source="Kwok et al. 2025, arXiv:2506.13234, ICML", interface=Experiment)
def butterfly(
    train: Train,
    steps: Sequence[int],
    perturbation: Perturbation,
    losses: Mapping[str, Loss],
    inputs: Any,
    sites: Sequence[str] = (),
    align: Sequence[str] = (),
) -> tuple[Divergence, ...]:
    """Train once as it is and once for each step with a perturbation there; compare the ends.

    The paper starts both copies from a stored step; here the loop is run again from its first
    step, so that the state of its optimiser is right, and a loop that does not come to the same
    parameters again is refused. All trainable parameters are perturbed, biases too.

    Args:
        train: Starts a new training at each call and yields `(step, network)` before each step,
            as `Checkpoints` takes it. The network is one object and comes to the same parameters
            at each call: fix seeds and the order of the data inside.
        steps: When to perturb; each a step that `train` yields.
        perturbation: What to add.
        losses: Functions of a network that return a number: loss or error, on any data. The
            network is in `eval()` and there are no gradients.
        inputs: A batch as `Model.run` takes it: for CKA, for the alignment by activations, and to
            measure the statistics of batch normalisation anew on the line.
        sites: Where to compare activations.
        align: Of "weights" and "activations": how units are matched, in sequential MLPs.

    Raises:
        InputError: A step never comes, the loop is not deterministic or yields several networks,
            an alignment is unknown or does not fit the network, a perturbation has no direction.

    Example:
        >>> def train():
        ...     net = nn.Linear(1, 1, bias=False)
        ...     nn.init.ones_(net.weight)
        ...     for step in range(3):
        ...         yield step, net
        ...         net.weight.data *= 0.5
        >>> def loss(net):
        ...     return net.weight.item() ** 2
        >>> shift = Perturbation(norm=0.8, direction={"weight": torch.ones(1, 1)})
        >>> found = butterfly(train, [0, 2], shift, {"loss": loss}, torch.ones(1, 1))
        >>> [round(d.plain.distance, 3) for d in found]  # of 3 halvings the last has 3, or 1, left
        [0.1, 0.4]
    """
    if unknown := [name for name in align if name not in ALIGNMENTS]:
        raise InputError(f"alignment must be one of {', '.join(ALIGNMENTS)}, got {unknown[0]!r}")
    plain, stds, states = _reference(train, steps)
    if align:
        hidden_axes(plain)  # refuse a network that has none before the other trainings

    def spawn(at: int) -> Divergence:
        def perturb(step: int, network: nn.Module) -> None:
            if step != at:
                return
            if not torch.equal(vector(network), states[step]):
                raise InputError(f"training must be deterministic, it differs at step {step}")
            perturbation.add_to(network, stds)

        other = _trained(train, perturb)
        orders = {name: ALIGNMENTS[name](plain, other, inputs) for name in align}
        aligned = {n: gap(plain, permuted(other, o), losses, inputs) for n, o in orders.items()}
        own = gap(plain, other, losses, inputs)
        return Divergence(at, own, aligned, _similar(plain, other, inputs, sites))

    return tuple(spawn(step) for step in track(steps, "perturbed trainings"))


def _reference(
    train: Train, steps: Sequence[int]
) -> tuple[nn.Module, dict[str, float], dict[int, Tensor]]:
    """Return the unperturbed end, the parameters' spread at the first step, and each state."""
    stds: dict[str, float] = {}
    states: dict[int, Tensor] = {}

    def look(step: int, network: nn.Module) -> None:
        if not stds:
            named = trainable(network).items()
            stds.update((n, float(p.detach().std(correction=0))) for n, p in named)
        if step in steps:
            states[step] = vector(network)

    plain = _trained(train, look)
    if missing := [step for step in steps if step not in states]:
        raise InputError(f"every step to perturb must be yielded by the training, {missing} is not")
    return plain, stds, states


def _trained(train: Train, look: Callable[[int, nn.Module], None]) -> nn.Module:
    """Run a training, looking at each step; return a copy of its network at rest."""
    network: nn.Module | None = None
    for step, current in train():
        if current is not (network := network or current):
            raise InputError(f"training must yield one network, another came at step {step}")
        look(step, current)
    if network is None:
        raise InputError("training must yield (step, network) at least once, it never did")
    return copy.deepcopy(network).eval()


def _similar(
    one: nn.Module, other: nn.Module, inputs: Any, sites: Sequence[str]
) -> dict[str, float]:
    """Return linear CKA by site."""
    if not sites:
        return {}
    read = [Model(m).run(inputs, record=sites) for m in (one, other)]
    found = {}
    for site in read[0]:
        x_ND, y_ND = (rec.flat(site)[0].double().flatten(1) for rec in read)
        both = Sums.of(torch.cat([x_ND, y_ND], 1), (x_ND.shape[1], y_ND.shape[1]))
        found[site] = float(alignment(both)[0, 1])
    return found
