"""Hooks: set and removed in one place, in `finally`.

Taps of one run are grouped by module and side, so a module carries at most one hook for each side.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from copy import copy
from functools import partial
from itertools import groupby
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actkit.core.attention import AttentionSocket
from actkit.core.context import ForwardContext
from actkit.core.controller import Beside, Controller, kept
from actkit.core.errors import EditError
from actkit.core.experts import ExpertSocket, RouterSocket
from actkit.core.taps import Tap
from actkit.core.values import Chain, get, main_input, main_output, put, slots


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
        self._memory: dict[Any, dict[Any, Any]] = {}
        self.contexts: dict[str, ForwardContext] = defaultdict(
            partial(ForwardContext, self._memory)
        )
        self._aside = False  # a pass beside the run: not counted, not read, never stopped
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
                self.contexts[f"stack {stack.name}"].frames = partial(stack.frames, module)
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
        if any(t.edits for t in self._taps):
            self._handles.append(self._module.register_forward_hook(self._check_logits))

    def _setter(self, side: str) -> Callable[[nn.Module, str, list[Tap]], RemovableHandle]:
        setters = {
            "in": self._into,
            "out": self._out,
            "router": self._router,
            "experts": self._experts,
        }
        return setters[side]

    def _door(self, name: str, path: str) -> None:
        """Keep the context of a stack (of the network, for "") up to date."""
        looking = [] if name else self._looking()

        def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            before = {k: copy(m) for k, m in self.contexts.items()} if looking else {}
            for key in [k for k in self._calls if not self._inside or k[0].startswith(f"{path}.")]:
                del self._calls[key]
            self._inside.append(name)
            self.contexts[name].begin(args, kwargs)
            self.contexts[name].tell(*self.given)
            if len(self._inside) == 1 and self.contexts[name].step == 0 and not self._aside:
                self._memory.clear()
            for controller in () if self._aside else looking:
                memory = self._memory.setdefault(controller.key, {})
                alone = partial(self._alone, before)
                beside = Beside(self._module, (args, kwargs), memory, alone)
                controller.before(beside, memory, self.contexts[name])

        def end(*_: Any) -> None:
            if name in self._inside:  # called even where a hook before `begin` failed
                self._inside.remove(name)

        module = self._module.get_submodule(path)
        self._handles.append(module.register_forward_pre_hook(begin, with_kwargs=True))
        self._handles.append(module.register_forward_hook(end, always_call=True))

    def _looking(self) -> list[Controller]:
        """Return the controllers that look ahead, each memory's once."""
        found: dict[str, Controller] = {}
        for edit in (e for t in self._taps for e in t.edits):
            own = edit.operation
            if isinstance(own, Controller) and type(own).before is not Controller.before:
                if edit.block is not None:
                    raise EditError(
                        f"what looks ahead needs a run of its own: {type(own).__name__} at "
                        f"{edit.site} cannot be one of several versions in a batch"
                    )
                found[own.key] = own
        return list(found.values())

    def _fresh_contexts(self) -> dict[str, ForwardContext]:
        """Return contexts, by stack, that share the run's memory and have seen no pass."""
        return defaultdict(partial(ForwardContext, self._memory))

    def _alone(self, before: Mapping[str, ForwardContext]) -> AbstractContextManager[None]:
        """Return a context for one more pass from where the contexts stood."""
        contexts = self._fresh_contexts()
        contexts |= {k: copy(m) for k, m in before.items()}
        fresh: dict[tuple[str, str], int] = defaultdict(int)
        return kept(self, _aside=True, _stop=False, contexts=contexts, _calls=fresh, _inside=[])

    def _check_logits(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Refuse to go on once edits have made the logits NaN."""
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or not logits.is_floating_point() or not logits.numel():
            return
        last = logits[:, -1] if logits.dim() > 2 else logits
        if (broken := last.isnan().reshape(len(last), -1).any(-1)).any():
            edited = [t for t in self._taps if t.edits]
            lost = [t for t in edited if t.finite is not None and not t.finite]
            first = f"at {lost[0].site.name}" if lost else f"after {edited[-1].site.name}"
            raise EditError(
                f"edits must leave the logits numbers, got NaN at step {self.contexts[''].step} in "
                f"row {broken.nonzero()[0, 0].item()}; values stopped being finite {first}: "
                "lower the strength"
            )

    def _meant(self, tap: Tap, call: int) -> bool:
        """Say whether a call of a module is one that the tap is meant for.

        Stacks may share a module (T5's embeddings), so while others run a stack's taps wait.
        """
        stack, running = tap.site.stack, [name for name in self._inside if name]
        own = stack is None or not running or f"stack {stack.name}" in running
        return own and tap.site.place.call in (None, call)

    def _context(self, tap: Tap) -> ForwardContext:
        stack = tap.site.stack
        return self.contexts["" if stack is None else f"stack {stack.name}"]

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
                x = tap.pass_on(x, self._context(tap), first=first and not self._aside)
                if not self._aside:
                    self._waiting.discard(id(tap))
        return x

    def _done(self, *_: Any) -> None:
        if self._stop and not self._waiting:
            raise Stop

    def _into(self, module: nn.Module, path: str, taps: list[Tap]) -> RemovableHandle:
        # what reads or writes the stream comes before what only this module sees
        groups = _by_item(sorted(taps, key=lambda t: not t.site.place.shared))

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call, old = self._call(path, "in"), slots(args, kwargs)
            given = old
            for item, own in groups:
                chain = item or main_input(path, given)
                x = get(given, chain, f"{path}:in")
                shared = own[0].site.place.shared and any(t.writes for t in own)
                # what edits keep for their gradients must not be overwritten by the copy below
                new = self._pass(own, call, x.clone() if shared else x)
                if new is not x and shared:
                    x.copy_(new)
                elif new is not x:
                    given = put(given, chain, new)
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
                chain = item or main_output(output)
                x = get(output, chain, f"{path}:out")
                new = self._pass(own, call, x)
                output = output if new is x else put(output, chain, new)
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
