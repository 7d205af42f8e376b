"""What a deficit during training leaves behind, by when it comes and how long it lasts.

Shapes: O onsets, L lengths, P pathways.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from actkit.catalog import method
from actkit.core.edits.edit import Edit
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.model import Model
from actkit.read._base import Experiment


@dataclass(frozen=True, slots=True)
class Deficit:
    """The steps of a training in which a deficit is on.

    Attributes:
        onset: The first of them.
        length: How many there are.
    """

    onset: int
    length: int

    @property
    def end(self) -> int:
        """Return the first step after it."""
        return self.onset + self.length

    def at(self, step: int) -> bool:
        """Say whether it is on in a step."""
        return self.onset <= step < self.end


@dataclass(frozen=True, slots=True)
class CriticalPeriod:
    """What was measured at the end of each training.

    Attributes:
        onsets: O steps at which a deficit began.
        lengths: L lengths of it, in steps.
        values_OL: (O, L, ...) what was measured.
        undisturbed: The same without a deficit.
    """

    onsets: tuple[int, ...]
    lengths: tuple[int, ...]
    values_OL: Tensor
    undisturbed: Tensor

    @property
    def effects(self) -> Tensor:
        """Return (O, L, ...) the change that the deficit left."""
        return self.values_OL - self.undisturbed


@method(source="Kleinman et al. 2024, arXiv:2308.12221, ICLR", interface=Experiment)
def critical_period(
    train: Callable[[Deficit], nn.Module],
    read: Callable[[Model], Any],
    onsets: Sequence[int],
    lengths: Sequence[int],
) -> CriticalPeriod:
    """Train with a deficit at each onset and of each length, and once without; read the ends.

    As in the paper, where the deficit silences one sensor and the share of its pathway is read;
    any deficit and any number will do. Where the deficit is another task, its lengths from onset 0
    are durations of pre-training, and `read` may return the loss of the task that follows.

    Args:
        train: Trains a new network with a deficit in the steps for which `deficit.at(step)`, and
            returns it. How long it goes on after `deficit.end` is its own choice; fix its seeds.
        read: Returns a number or a tensor, for example `pathway_shares`; the network is in
            `eval()`.
        onsets: Steps at which the deficit begins (>= 0).
        lengths: How many steps it lasts (>= 1).

    Raises:
        InputError: There is no onset or no length, or one is out of its range.

    Example:
        >>> def train(deficit):  # a weight grows by 1 a step, but not in a deficit
        ...     net = nn.Linear(1, 1, bias=False)
        ...     nn.init.zeros_(net.weight)
        ...     for step in range(10):
        ...         net.weight.data += not deficit.at(step)
        ...     return net
        >>> found = critical_period(train, lambda m: m.module.weight.item(), [0, 8], [1, 4])
        >>> found.effects
        tensor([[-1., -4.],
                [-1., -2.]])
    """
    if not (onsets and lengths and min(onsets) >= 0 and min(lengths) >= 1):
        raise InputError(
            f"need onsets of at least 0 and lengths of at least 1, got {onsets} and {lengths}"
        )
    sweep = [Deficit(0, 0), *(Deficit(o, n) for o, n in product(onsets, lengths))]
    values = [_read(train(d), read) for d in track(sweep, "trainings with a deficit")]
    values_OL = torch.stack(values[1:]).view(len(onsets), len(lengths), *values[0].shape)
    return CriticalPeriod(tuple(onsets), tuple(lengths), values_OL, values[0])


def _read(network: nn.Module, read: Callable[[Model], Any]) -> Tensor:
    return torch.as_tensor(read(Model(network.eval()))).detach()


def pathway_shares(model: Model, inputs: Any, pathways: Sequence[Edit]) -> Tensor:
    """Return the (P,) share of each pathway in what a network computes; they add up to 1.

    A pathway weighs as much as the output moves, in root mean square, when its edit takes it
    away. NaN if none moves it.

    Args:
        model: The network, of any kind; what it returns is a tensor or has `logits`.
        inputs: As in `Model.run`.
        pathways: One edit for each, for example `ak.set("left:out", 0.0)`.

    Raises:
        InputError: There is no pathway, or the network returns no tensor.

    Example:
        >>> import actkit as ak
        >>> net = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[3.0, 1.0]]))
        >>> sensors = [ak.set("0:in", 0.0, where=ak.Where(units=i)) for i in range(2)]
        >>> pathway_shares(Model(net), torch.ones(5, 2), sensors)
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    if not pathways:
        raise InputError("need at least one pathway to take away, got none")
    whole = model.run(inputs, logits=True).logits.double()

    def moved(edit: Edit) -> Tensor:
        rest = model.run(inputs, edits=[edit], logits=True).logits
        return (whole - rest).square().mean().sqrt()

    weight_P = torch.stack([moved(edit) for edit in pathways])
    return weight_P / weight_P.sum()
