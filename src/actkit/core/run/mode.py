"""Networks in training mode: said plainly, and their statistics left as they were."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from actkit.core.errors import ModeWarning

STATISTICS = frozenset(
    {"running_mean", "running_var", "num_batches_tracked", "_u", "_v", "weight_u", "weight_v"}
)
"""Buffers that modules of torch change while they run in training mode."""


class TrainingMode:
    """Looks after one network that may be in training mode, the user's own choice.

    Args:
        module: The network.
        name: What to call it in the warning.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        """Keep the network; nothing is looked at yet."""
        self._module, self._name, self._said = module, name, False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Let a run see the statistics of normalisation as they are, and change none of them.

        Copies stand in for the buffers meanwhile, so that what autograd keeps of them stays too.
        """
        training = [m for m in self._module.modules() if m.training]
        if training and not self._said and (random := sum(map(_changes_numbers, training))):
            self._said = True
            warnings.warn(
                f"{self._name} is in training mode: {random} of its modules (dropout, "
                "normalisation by batch) give other numbers than in eval mode, or other ones in "
                "each run; call eval() first if that is not meant",
                ModeWarning,
                stacklevel=4,
            )
        own = [(m, {k: b for k, b in m._buffers.items() if k in STATISTICS}) for m in training]
        changed = [(m, buffers) for m, buffers in own if buffers]
        for m, buffers in changed:
            m._buffers.update({k: None if b is None else b.clone() for k, b in buffers.items()})
        try:
            yield
        finally:
            for m, buffers in changed:
                m._buffers.update(buffers)


def _changes_numbers(module: nn.Module) -> bool:
    """Say whether a module in training mode computes otherwise than in eval mode."""
    if any(module._buffers.get(name) is not None for name in STATISTICS):
        return True
    dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    # modules that call dropout as a function keep its rate as a number
    rates = (value for name, value in vars(module).items() if "drop" in name)
    return dropout or any(type(rate) is float and rate > 0 for rate in rates)
