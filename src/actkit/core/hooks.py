"""Hooks: set and removed in one place, in `finally`.

Taps of one run are grouped by module and side, so a module carries at most one hook for each side.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from functools import partial
from itertools import groupby
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actkit.core.attention import AttentionSocket
from actkit.core.errors import SiteError
from actkit.core.experts import ExpertSocket, RouterSocket
from actkit.core.moment import Moment
from actkit.core.taps import Tap

Chain = tuple[int | str, ...]


class Stop(Exception):  # noqa: N818
    """Raised inside a forward pass once every asked site was read; caught by the run."""


class Hooks:
    """The hooks of one run; a context manager that leaves nothing behind.

    Args:
        module: The network.
        taps: What to do at which site.
        stacks: Path of each stack's module by the stack's name.
        stop: Raise `Stop` once every tap that reads has read. Edits in a stack come in a known
            order, so later ones need not run; edits of other modules are waited for.
    """

    def __init__(
        self, module: nn.Module, taps: Iterable[Tap], stacks: Mapping[str, str], stop: bool = False
    ) -> None:
        """Plan the hooks; none is set before the context is entered."""
        self._module, self._taps, self._stop = module, list(taps), stop
        self._stacks = stacks
        self.moments: dict[str, Moment] = defaultdict(Moment)
        self._waiting = {id(t) for t in self._taps if t.read or (t.edits and not t.site.stack)}
        self._calls: dict[tuple[str, str], int] = defaultdict(int)
        self._inside: list[str] = []
        self._handles: list[RemovableHandle] = []
        self._sockets: list[AttentionSocket] = []
        self.given: tuple[Tensor | None, Tensor | None] = (None, None)

    def __enter__(self) -> Self:
        """Set the hooks."""
        try:
            self._set()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        for socket in self._sockets:
            socket.close()
        self._handles.clear()
        self._sockets.clear()

    def _set(self) -> None:
        self._door("", "")
        for name, path in self._stacks.items():
            self._door(f"stack {name}", path)
        for stack in (t.site.stack for t in self._taps if t.site.stack):
            if stack.frames is not None:
                module = self._module.get_submodule(self._stacks[stack.name])
                self.moments[f"stack {stack.name}"].frames = partial(stack.frames, module)
        groups: dict[tuple[str, str], list[Tap]] = defaultdict(list)
        for tap in self._taps:
            groups[tap.site.place.path, tap.site.place.side].append(tap)
        sockets: dict[str, AttentionSocket] = {}
        for (path, side), taps in groups.items():
            module = self._module.get_submodule(path)
            if side in ("scores", "probs"):
                socket = sockets.get(path) or AttentionSocket(module, self._run, self._done)
                sockets[path] = socket
                socket.taps[side] = taps
                continue
            self._handles.append(self._setter(side)(module, path, taps))
        for socket in sockets.values():
            self._sockets.append(socket)
            socket.open()

    def _setter(self, side: str) -> Callable[[nn.Module, str, list[Tap]], RemovableHandle]:
        setters = {
            "in": self._into,
            "out": self._out,
            "router": self._router,
            "experts": self._experts,
        }
        return setters[side]

    def _door(self, name: str, path: str) -> None:
        """Keep the moment of a stack (of the network, for "") up to date."""

        def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for key in [k for k in self._calls if not self._inside or k[0].startswith(f"{path}.")]:
                del self._calls[key]
            self._inside.append(name)
            self.moments[name].begin(args, kwargs)
            self.moments[name].tell(*self.given)

        def end(*_: Any) -> None:
            if name in self._inside:  # called even where a hook before `begin` failed
                self._inside.remove(name)

        module = self._module.get_submodule(path)
        self._handles.append(module.register_forward_pre_hook(begin, with_kwargs=True))
        self._handles.append(module.register_forward_hook(end, always_call=True))

    def _meant(self, tap: Tap, call: int) -> bool:
        """Say whether a call of a module is one that the tap is meant for.

        Stacks may share a module (T5's embeddings), so while others run a stack's taps wait.
        """
        stack, running = tap.site.stack, [name for name in self._inside if name]
        own = stack is None or not running or f"stack {stack.name}" in running
        return own and tap.site.place.call in (None, call)

    def _moment(self, tap: Tap) -> Moment:
        stack = tap.site.stack
        return self.moments["" if stack is None else f"stack {stack.name}"]

    def _run(self, taps: list[Tap], path: str, x: Tensor) -> Tensor:
        """Pass a tensor, which its module passes on once a call, through the taps."""
        return self._pass(taps, self._call(path, taps[0].site.place.side), x)

    def _call(self, path: str, side: str) -> int:
        """Return which call of a module this is in one forward pass, from 0."""
        self._calls[path, side] += 1
        return self._calls[path, side] - 1

    def _pass(self, taps: list[Tap], call: int, x: Tensor) -> Tensor:
        """Pass a tensor through the taps that this call of the module is meant for."""
        for tap in taps:
            if self._meant(tap, call):
                first = call == 0 or tap.site.place.call is not None
                x = tap.pass_on(x, self._moment(tap), first=first)
                self._waiting.discard(id(tap))
        return x

    def _done(self, *_: Any) -> None:
        if self._stop and not self._waiting:
            raise Stop

    def _into(self, module: nn.Module, path: str, taps: list[Tap]) -> RemovableHandle:
        # what reads or writes the stream comes before what only this module sees
        groups = _by_item(sorted(taps, key=lambda t: not t.site.place.shared))

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call, old = self._call(path, "in"), _slots(args, kwargs)
            given = old
            for item, own in groups:
                chain = item or _main_input(path, given)
                x = _get(given, chain, f"{path}:in")
                shared = own[0].site.place.shared and any(t.writes for t in own)
                # what edits keep for their gradients must not be overwritten by the copy below
                new = self._pass(own, call, x.clone() if shared else x)
                if new is not x and shared:
                    x.copy_(new)
                elif new is not x:
                    given = _put(given, chain, new)
            self._done()
            if given is old:
                return None
            return tuple(given[i] for i in range(len(args))), {k: given[k] for k in kwargs}

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def _out(self, module: nn.Module, path: str, taps: list[Tap]) -> RemovableHandle:
        groups = _by_item(taps)

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            call = self._call(path, "out")
            for item, own in groups:
                chain = item or _main_output(output)
                x = _get(output, chain, f"{path}:out")
                new = self._pass(own, call, x)
                output = output if new is x else _put(output, chain, new)
            self._done()
            return output

        return module.register_forward_hook(after)

    def _experts(self, module: nn.Module, path: str, taps: list[Tap]) -> RemovableHandle:
        socket = ExpertSocket(module, edited=any(t.edits for t in taps))

        def after(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            new = socket(args, output, lambda x: self._run(taps, path, x))
            self._done()
            return new

        return module.register_forward_hook(after)

    def _router(self, module: nn.Module, path: str, taps: list[Tap]) -> RemovableHandle:
        socket = RouterSocket(module)

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            new = socket(output, lambda x: self._run(taps, path, x))
            self._done()
            return new

        # the weights and indices that other taps see follow from the logits
        return module.register_forward_hook(after, prepend=True)


def _by_item(taps: list[Tap]) -> list[tuple[Chain, list[Tap]]]:
    """Group taps of one tensor that follow each other; their order stays."""
    alike = groupby(taps, lambda t: (t.site.place.item, t.site.place.shared))
    return [(item, list(own)) for (item, _), own in alike]


def _slots(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int | str, Any]:
    """Return all arguments under their numbers and names."""
    slots: dict[int | str, Any] = dict(enumerate(args))
    slots.update(kwargs)
    return slots


def _main_input(path: str, given: Mapping[int | str, Any]) -> Chain:
    """Return the way to a module's first input that is a tensor."""
    names = [k for k, v in given.items() if isinstance(v, Tensor)]
    if not names:
        raise SiteError(f"{path}:in needs an input that is a tensor, got {list(given)}")
    named = "hidden_states" in names and not isinstance(names[0], int)
    return ("hidden_states" if named else names[0],)


def _main_output(output: Any) -> Chain:
    """Return the way to the main tensor of what a module returned: itself, or its first item."""
    if isinstance(output, tuple | list) and output:
        return (0, *_main_output(output[0]))
    if isinstance(output, Mapping):
        return tuple(k for k, v in output.items() if isinstance(v, Tensor))[:1]
    return ()


def _get(values: Any, chain: Chain, where: str) -> Tensor:
    for item in chain:
        try:
            values = _item(values, item)
        except (AttributeError, IndexError, TypeError, KeyError) as error:
            raise SiteError(f"{where} has no item {item!r} in {type(values).__name__}") from error
    if not isinstance(values, Tensor):
        raise SiteError(f"{where} must be a tensor to be read, got {type(values).__name__}")
    return values


def _item(values: Any, item: int | str) -> Any:
    by_name = isinstance(item, str) and not isinstance(values, Mapping)
    return getattr(values, str(item)) if by_name else values[item]


def _put(values: Any, chain: Chain, new: Tensor) -> Any:
    """Return a copy of the values with the item at the end of the chain replaced."""
    if not chain:
        return new
    item, rest = chain[0], chain[1:]
    inner = _put(_item(values, item), rest, new)
    if isinstance(values, tuple):
        old = _item(values, item)
        at = item if isinstance(item, int) else [v is old for v in values].index(True)
        items = [*values[:at], inner, *values[at + 1 :]]
        return type(values)(*items) if hasattr(values, "_fields") else type(values)(items)
    changed = copy(values)
    if isinstance(item, str) and not isinstance(values, Mapping):
        setattr(changed, item, inner)
    else:
        changed[item] = inner
    return changed
