"""Hooks: set and removed in one place, in `finally`.

Taps of one run are grouped by module and side, so a module carries at most one hook for each side.
Hooks act in the thread or async task that entered them, and on the very module that they stand on.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from itertools import groupby
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import torch
from torch import Tensor, nn

from actkit.core.compat import generators, is_checkpointing, is_in_checkpoint, num_virtual_tokens
from actkit.core.edits.controller import Controller, SideRun, temporarily
from actkit.core.errors import EditError
from actkit.core.run.attachments import Close, ThreadBound, attachments
from actkit.core.run.attention import AttentionSocket
from actkit.core.run.context import ForwardContext
from actkit.core.run.experts import ExpertSocket, RouterSocket
from actkit.core.run.fed import Told
from actkit.core.run.taps import Tap
from actkit.core.run.tensor_path import TensorPath, arguments, get, main_input, main_output, put
from actkit.core.run.told import keeps_several_beams, told_by_generate


class Stop(Exception):  # noqa: N818
    """Raised inside a forward pass once every asked site was read; caught by the run."""


_RUNS_ONCE: WeakSet[nn.Module] = WeakSet()
"""Modules that were seen to run once in a whole pass."""


class Hooks(ThreadBound):
    """The hooks of one run; a context manager that leaves nothing behind.

    Args:
        module: The network.
        taps: What to do at which site.
        stacks: Path of each stack's module by the stack's name.
        stop: Raise `Stop` once every tap that reads has read. Edits in a stack come in a known
            order, so later ones need not run; edits of other modules are waited for.
        told: What is known of the inputs; without it, what `generate` tells and what is counted.
    """

    def __init__(
        self,
        module: nn.Module,
        taps: Iterable[Tap],
        stacks: Mapping[str, str],
        stop: bool = False,
        told: Told | None = None,
    ) -> None:
        """Plan the hooks; none is set before the context is entered."""
        super().__init__()
        self._module, self._taps = module, list(taps)
        # a module that is read at its first call may run again, unless it was seen to run once
        unsure = (t for t in self._taps if t.read and t.counts_calls)
        self._stop = stop and all(self._submodule(t) in _RUNS_ONCE for t in unsure)
        self._stacks, self._told = stacks, told
        self._generating: Told | None = None
        self.contexts: dict[str, ForwardContext] = {}
        self._is_side_run = False  # a pass beside the run: not counted, not read, never stopped
        self._waiting = {id(t) for t in self._taps if t.read or (t.edits and not t.site.stack)}
        self._calls: dict[tuple[str, str], int] = defaultdict(int)
        self._inside: list[str] = []
        self._begun: dict[str, ForwardContext] = {}  # by hooks, whose `forward` is still to come
        self._memory: dict[Any, dict[Any, Any]] = {}
        self._latest, self._stopped = "", False
        self._ends: list[Close] = []
        self.passed_elsewhere = False

    def _submodule(self, tap: Tap) -> nn.Module:
        return self._module.get_submodule(tap.site.place.path)

    def __enter__(self) -> Self:
        """Set the hooks."""
        self.enter_here()
        try:
            self._set()
        # also after Ctrl-C: what was set by then must come off
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
        # a run that was stopped may have left out a later call of a module
        if kind is None and not self._stopped:
            seen = (t for t in self._taps if t.counts_calls and t.calls == 1)
            _RUNS_ONCE.update(map(self._submodule, seen))
        # backwards, so that what stands over something else comes off first
        while self._ends:
            self._ends.pop()()
        self.leave_here()

    def _set(self) -> None:
        self._set_attachments()
        groups: dict[tuple[str, str], list[Tap]] = defaultdict(list)
        for tap in self._taps:
            groups[tap.site.place.path, tap.site.place.side].append(tap)
        sockets: dict[str, AttentionSocket] = {}
        for (path, side), taps in groups.items():
            module = self._module.get_submodule(path)
            if side in ("scores", "probs"):
                socket = sockets.get(path) or AttentionSocket(
                    module, self, partial(self.pass_through, path=path)
                )
                sockets[path] = socket
                socket.taps[side] = taps
                continue
            self._setter(side)(module, path, taps)
        for socket in sockets.values():
            self._ends.append(socket.close)
            socket.open()
            self._hook(socket.module, "register_forward_hook", self.done)
        if any(t.edits for t in self._taps):
            self._hook(self._module, "register_forward_hook", self._check_logits)

    def _set_attachments(self) -> None:
        """Listen to passes of the network and its stacks, and to calls of `generate`."""
        virtual = num_virtual_tokens(self._module)
        for name, path in {"": "", **{f"stack {n}": p for n, p in self._stacks.items()}}.items():
            module = self._module.get_submodule(path)
            self.contexts[name] = ForwardContext(module, virtual if name else 0)
            self._listen(name, path, module)
        for stack in (t.site.stack for t in self._taps if t.site.stack):
            if stack.frames is not None:
                module = self._module.get_submodule(self._stacks[stack.name])
                self.contexts[f"stack {stack.name}"].frames = partial(stack.frames, module)
        # a single run was told all of its inputs; only in a loop may `generate` tell more
        is_loop = self._told is None or self._told.turns
        if is_loop and any(t.edits for t in self._taps):
            for module in generators(self._module):
                listener = partial(self._generate, module)
                self._ends.append(attachments(module).listen("generate", listener))

    def _hook(
        self, module: nn.Module, register: str, fn: Callable[..., Any], **settings: Any
    ) -> None:
        """Set a hook that acts where it belongs: here, and on no copy of the module."""

        def own(called: nn.Module, *given: Any) -> Any:
            if self.is_here and called is module:
                return fn(called, *given)
            return None

        self._ends.append(attachments(module).hook(register, own, **settings))

    def _setter(self, side: str) -> Callable[[nn.Module, str, list[Tap]], None]:
        setters = {
            "in": self._into,
            "out": self._out,
            "router": self._router,
            "experts": self._experts,
        }
        return setters[side]

    def _listen(self, name: str, path: str, module: nn.Module) -> None:
        """Keep the context of a stack (of the network, for "") up to date."""
        looking = [] if name else self._looking()

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._begun[name] = self._begin(name, path, looking, args, kwargs)

        def forward(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if not self.is_here:
                self.passed_elsewhere = True
                return call(*args, **kwargs)
            # a loop may call `forward` itself, past all hooks
            context = self._begun.pop(name, None) or self._begin(name, path, looking, args, kwargs)
            try:
                output = call(*args, **kwargs)
            finally:
                self._inside.remove(name)
            context.end(output)
            return output

        def after(*_: Any) -> None:
            if self._begun.pop(name, None) is not None:  # a hook failed before `forward`
                self._inside.remove(name)

        self._hook(module, "register_forward_pre_hook", before, with_kwargs=True)
        self._hook(module, "register_forward_hook", after, always_call=True)
        self._ends.append(attachments(module).listen("forward", forward))

    def _begin(
        self,
        name: str,
        path: str,
        looking: list[Controller],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> ForwardContext:
        """Take note of a pass that begins, and let controllers look ahead."""
        self._check_gradients()
        # runs beside start from where the contexts stand before this pass is counted
        before = {k: c.beside(args, kwargs) for k, c in self.contexts.items()} if looking else {}
        self._forget_calls(path)
        # tensors behind all stacks belong to what began first
        self._latest = self._latest if self._inside else name
        self._inside.append(name)
        context = self.contexts[name]
        # beside an encoder a decoder reads the answer: of what was told only the rows are its own
        answers = name == "stack decoder" and "encoder" in self._stacks
        context.begin(args, kwargs, self._generating or self._told, rows_only=answers)
        if len(self._inside) == 1 and not self._is_side_run:
            self._memory = context.memory
        context.memory = self._memory  # what controllers remember is of the whole pass
        if not self._is_side_run:
            alone = partial(self._beside, before)
            for controller in looking:
                memory = context.memory.setdefault(controller.key, {})
                beside = SideRun(self._module, (args, kwargs), memory, alone)
                controller.before(beside, memory, context)
        return context

    def _forget_calls(self, path: str) -> None:
        """Count calls anew: of all modules if no pass is under way, else of those inside one."""
        begun = [k for k in self._calls if not self._inside or k[0].startswith(f"{path}.")]
        for key in begun:
            del self._calls[key]

    def _check_gradients(self) -> None:
        """Refuse gradients where blocks run again, without hooks, during backward."""
        if self._inside or not self._taps or not torch.is_grad_enabled():
            return
        if is_checkpointing(self._module):
            raise EditError(
                "gradient checkpointing runs blocks again during backward, where edits and "
                "recordings no longer stand: turn it off (gradient_checkpointing_disable)"
            )

    def _generate(
        self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Listen to what `generate` is asked for."""
        if not self.is_here or self._generating is not None:
            return call(*args, **kwargs)
        if keeps_several_beams(module, kwargs):
            self._refuse_memories()
        self._generating = told_by_generate(module, args, kwargs)
        try:
            return call(*args, **kwargs)
        finally:
            self._generating = None

    def _refuse_memories(self) -> None:
        """Refuse controllers, whose memories are of rows, where beams change places."""
        for edit in (e for t in self._taps for e in t.edits):
            if isinstance(edit.operation, Controller) and edit.operation.remembers:
                raise EditError(
                    f"a controller cannot follow beams, whose rows change places with every "
                    f"token, got {type(edit.operation).__name__} at {edit.site}: set num_beams=1"
                )

    def _looking(self) -> list[Controller]:
        """Return the controllers that look ahead, each memory's once."""
        found: dict[str, Controller] = {}
        for edit in (e for t in self._taps for e in t.edits):
            own = edit.operation
            if isinstance(own, Controller) and type(own).before is not Controller.before:
                if edit.batch_rows is not None:
                    raise EditError(
                        f"what looks ahead needs a run of its own: {type(own).__name__} at "
                        f"{edit.site} cannot be one of several versions in a batch"
                    )
                found[own.key] = own
        return list(found.values())

    def _beside(self, before: Mapping[str, ForwardContext]) -> AbstractContextManager[None]:
        """Return a context for one more pass from where the contexts stood."""
        contexts = {k: c.again_beside() for k, c in before.items()}
        fresh: dict[tuple[str, str], int] = defaultdict(int)
        return temporarily(
            self, _is_side_run=True, _stop=False, contexts=contexts, _calls=fresh, _inside=[]
        )

    def _check_logits(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Refuse to go on once edits have made the logits NaN."""
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or not logits.is_floating_point() or not logits.numel():
            return
        last = logits[:, -1] if logits.dim() > 2 else logits
        if (broken := last.isnan().reshape(len(last), -1).any(-1)).any():
            edited = [t for t in self._taps if t.edits]
            lost = [t for t in edited if t.unfinite is not None and t.unfinite.isnan()]
            first = f"at {lost[0].site.name}" if lost else f"after {edited[-1].site.name}"
            raise EditError(
                f"edits must leave the logits numbers, got NaN{self._at_step()} in "
                f"row {broken.nonzero()[0, 0].item()}; values stopped being finite {first}: "
                "lower the strength"
            )

    def _at_step(self) -> str:
        step = self.contexts[self._latest].known_step
        return "" if step is None else f" at step {step}"

    def _meant(self, tap: Tap, call: int) -> bool:
        """Say whether a call of a module is one that the tap is meant for.

        Stacks may share a module (T5's embeddings), so while others run a stack's taps wait.
        """
        own = tap.stack is None or tap.stack in self._inside or not any(self._inside)
        return own and tap.site.place.call in (None, call)

    def _context(self, tap: Tap) -> ForwardContext:
        if tap.stack is not None:
            return self.contexts[tap.stack]
        # a module's path lies in the innermost stack that runs; behind it, in what began first
        return self.contexts[self._inside[-1] if self._inside else self._latest]

    def pass_through(self, taps: list[Tap], x: Tensor, path: str) -> Tensor:
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
                if torch.is_grad_enabled() and is_in_checkpoint():
                    raise EditError(
                        f"{tap.site.name} lies inside a checkpoint, which runs again during "
                        "backward, where edits and recordings no longer stand: run without it"
                    )
                first = call == 0 or tap.site.place.call is not None
                tap.calls = tap.calls if self._is_side_run else max(tap.calls, call + 1)
                x = tap.pass_on(x, self._context(tap), first=first and not self._is_side_run)
                if not self._is_side_run:
                    self._waiting.discard(id(tap))
        return x

    def done(self, *_: Any) -> None:
        """Stop the run if nothing is waited for."""
        if self._stop and not self._waiting:
            self._stopped = True
            raise Stop

    def _into(self, module: nn.Module, path: str, taps: list[Tap]) -> None:
        # what reads or writes the stream comes before what only this module sees
        groups = _by_item(sorted(taps, key=lambda t: not t.site.place.is_stream))

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call, old = self._call(path, "in"), arguments(args, kwargs)
            given = old
            for item, own in groups:
                chain = item or main_input(path, given)
                x = get(given, chain, f"{path}:in")
                shared = own[0].site.place.is_stream and any(t.writes for t in own)
                # what edits keep for their gradients must not be overwritten by the copy below
                new = self._pass(own, call, x.clone() if shared else x)
                if new is not x and shared:
                    x.copy_(new)
                elif new is not x:
                    given = put(given, chain, new)
            self.done()
            if given is old:
                return None
            return tuple(given[i] for i in range(len(args))), {k: given[k] for k in kwargs}

        self._hook(module, "register_forward_pre_hook", before, with_kwargs=True)

    def _out(self, module: nn.Module, path: str, taps: list[Tap]) -> None:
        groups = _by_item(taps)

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            call = self._call(path, "out")
            for item, own in groups:
                chain = item or main_output(output)
                x = get(output, chain, f"{path}:out")
                new = self._pass(own, call, x)
                output = output if new is x else put(output, chain, new)
            self.done()
            return output

        self._hook(module, "register_forward_hook", after)

    def _experts(self, module: nn.Module, path: str, taps: list[Tap]) -> None:
        socket = ExpertSocket(module, edited=any(t.edits for t in taps))

        def after(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            new = socket(args, output, partial(self.pass_through, taps, path=path))
            self.done()
            return new

        self._hook(module, "register_forward_hook", after)

    def _router(self, module: nn.Module, path: str, taps: list[Tap]) -> None:
        socket = RouterSocket(module)

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            new = socket(output, partial(self.pass_through, taps, path=path))
            self.done()
            return new

        # the weights and indices that other taps see follow from the logits
        self._hook(module, "register_forward_hook", after, prepend=True)


def _by_item(taps: list[Tap]) -> list[tuple[TensorPath, list[Tap]]]:
    """Group taps of one tensor that follow each other; their order stays."""
    alike = groupby(taps, lambda t: (t.site.place.item, t.site.place.is_stream))
    return [(item, list(own)) for (item, _), own in alike]
