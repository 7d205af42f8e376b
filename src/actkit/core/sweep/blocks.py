"""The blocks of a decoder: where they are, what stands in for one, and rows of what they get."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from actkit.core.run.attachments import ThreadBound

if TYPE_CHECKING:
    from actkit.core.run.runner import Runner


def block_paths(model: "Runner") -> list[str]:
    """Return the paths of the main stack's blocks; none where blocks are called again and again."""
    sites = {s.name: s for s in model.sites() if s.stack is not None and not s.stack.name}
    stack = next((s.stack for s in sites.values()), None)
    every = range(0 if stack is None else stack.num_blocks)
    found = [sites[f"resid_pre.{b}"].place for b in every if f"resid_pre.{b}" in sites]
    main = [p for p in found if p.side == "in" and p.call is None and not p.item]
    return [p.path for p in main] if len(main) == len(every) else []


class Skip(nn.Module):
    """Stands in for a block that need not run; gives on its input, or the base run's stream."""

    def __init__(
        self, block: nn.Module, value: Tensor | None, as_tuple: bool, guest: ThreadBound
    ) -> None:
        """Stand in for a block; return `value`, or the input if it is None.

        Where the guest is not, in other threads, the block itself runs.
        """
        super().__init__()
        self._own, self._value, self._as_tuple = (block,), value, as_tuple
        self._guest = guest

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._own[0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the next block receives, in the block's own form."""
        if not self._guest.is_here:
            return self._own[0](*args, **kwargs)
        x = hidden(args, kwargs) if self._value is None else self._value
        return (x,) if self._as_tuple else x


def hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the stream among a block's arguments."""
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found


def first_rows(value: Any, total: int, rows: int) -> Any:
    """Cut what has all rows to those that run; also inside tuples and mappings."""
    if isinstance(value, tuple):
        return tuple(first_rows(v, total, rows) for v in value)
    if isinstance(value, Mapping):
        return {k: first_rows(v, total, rows) for k, v in value.items()}
    whole = isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == total
    return value[:rows] if whole else value
