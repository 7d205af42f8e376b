"""Operations that a method brings along: with a strength for each row, and with a memory.

Shapes: B batch, T tokens, D width.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from actkit.core.edits.operation import Operation, strength, strength_of_row
from actkit.core.errors import EditError
from actkit.core.run.caches import is_cache
from actkit.core.run.context import ForwardContext


@dataclass(frozen=True, eq=False)
class StrengthOperation(Operation):
    """An operation with a strength: a number, or (B,) numbers, one for each row.

    A strength of zero leaves every bit as it is. Subclasses are frozen dataclasses whose tensor
    fields end in the site's width; they can be saved, since fields are plain data.
    """

    strength: float | Tensor = field(default=1.0, kw_only=True)

    @property
    def neutral(self) -> bool:
        """Say whether the strength is zero in every row, and no gradient is asked through it."""
        if isinstance(self.strength, Tensor):
            return not (self.strength.requires_grad or self.strength.any())
        return self.strength == 0

    def width(self) -> int | None:
        """Return the last size of the first tensor but the strength."""
        wide = [v.shape[-1] for k, v in self.tensors().items() if k != "strength" and v.dim()]
        return wide[0] if wide else None

    def extent(self, num_axes: int) -> tuple[int, ...]:
        """Return the sizes that are fixed: rows by the strengths, and the width."""
        rows = self.strength.numel() if isinstance(self.strength, Tensor) else 1
        return (rows, *super().extent(num_axes)[1:])

    def scaled(self, factor: float | Tensor) -> Self:
        """Return the operation at `factor` times its strength."""
        return replace(self, strength=self.strength * factor)

    def of_row(self, row: int, valid_T: Tensor, axes: str) -> Self:
        """Return the operation with a row's own strength."""
        return replace(self, strength=strength_of_row(self.strength, row))

    def dose(self, x: Tensor) -> float | Tensor:
        """Return the strength so that it broadcasts against x."""
        return strength(self.strength, x)


@dataclass(frozen=True, eq=False)
class Controller(StrengthOperation):
    """An operation that remembers what it saw, earlier in this pass and in the steps before.

    Edits whose controllers have the same `key` share one memory: one may watch at one site what
    another acts on at a later one. The memory is empty when a prompt begins and is gone after
    the run; what it holds of a batch has one entry for each row, so rows do not meet.

    Attributes:
        remembers: What it puts into the memory matters to later passes, so that it cannot follow
            beams, whose rows change places.
        key: Name of the memory; controllers that are fitted apart need keys of their own.
    """

    remembers: ClassVar[bool] = True
    key: str = field(kw_only=True)

    @abstractmethod
    def act(self, x: Tensor, memory: dict[str, Any], context: ForwardContext) -> Tensor:
        """Return the new values, x itself to leave them.

        Args:
            x: (B, T, D) values at the site; T is 1 for a generated token.
            memory: What was put there since the prompt began.
            context: The pass: its step, validity and positions.
        """

    def before(self, beside: "SideRun", memory: dict[str, Any], context: ForwardContext) -> None:
        """Look ahead before the network runs; by default nothing is done.

        Args:
            beside: Runs the same tokens beside the run itself.
            memory: As in `act`; `act` is called in the runs beside, too.
            context: As in `act`.
        """

    @property
    def may_rest(self) -> bool:
        """Say that it may leave all values as they are."""
        return True

    def width(self) -> int | None:
        """Return None: its tensors are not of the site."""
        return None

    def at(self, context: ForwardContext) -> Callable[[Tensor], Tensor]:
        """Return the operation as it acts in one pass."""
        if context.again:
            raise EditError(
                f"a controller needs a cache: without one all tokens run again in every pass, got "
                f"{type(self).__name__}"
            )
        memory = context.memory.setdefault(self.key, {})
        return partial(self.act, memory=memory, context=context)

    def __call__(self, x: Tensor) -> Tensor:
        """Refuse: without a pass there is no memory."""
        raise EditError(f"a controller acts in a run only, got {type(self).__name__} called alone")


class SideRun:
    """Runs the tokens of one pass again, beside the run itself and with caches of their own."""

    def __init__(
        self,
        module: nn.Module,
        given: tuple[tuple[Any, ...], dict[str, Any]],
        memory: dict[str, Any],
        alone: Callable[[], Any],
    ) -> None:
        """Hold what is needed for one more pass.

        Args:
            module: The network.
            given: Its arguments in this pass.
            memory: Where the caches are kept between steps.
            alone: A context in which passes are not counted and nothing is read.
        """
        self._module, self._given, self._alone = module, given, alone
        self._caches: dict[str, Any] = memory.setdefault("caches beside", {})

    def logits(self, name: str) -> Tensor:
        """Return the (B, V) logits of the last token of a run of its own.

        Args:
            name: Of the run: each has its own cache, which grows with every step.
        """
        args, kwargs = self._given
        slot = next((k for k, v in kwargs.items() if is_cache(v)), None)
        if slot is not None:
            if name not in self._caches:
                self._caches[name] = copy.deepcopy(kwargs[slot])
            kwargs = {**kwargs, slot: self._caches[name]}
        with self._alone():
            output = self._module(*args, **kwargs)
        logits: Tensor = output.logits[:, -1]
        return logits


@contextmanager
def temporarily(owner: Any, **values: Any) -> Iterator[None]:
    """Give attributes of an object other values for a while."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
