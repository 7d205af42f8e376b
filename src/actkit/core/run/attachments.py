"""What is attached to the modules of a network for a while, and leaves nothing behind.

Attachments let listeners wrap a method of one module (`forward`, `generate`), set hooks, and lend
the module another object under an attribute's name. All of it is seen by the thread or async task
that asked for it and by no other, and copies and pickles of the module are made without it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from threading import RLock
from typing import Any

from torch import nn

from actkit.core.compat import is_output_capture

Close = Callable[[], None]
Listener = Callable[..., Any]
"""Takes the method that it wraps and the arguments; returns what the method returned."""

_HERE: ContextVar[frozenset[object]] = ContextVar("actkit_here", default=frozenset())
_LOCK = RLock()
_ATTACHED, _REDUCE = "_actkit_attachments", "__reduce_ex__"
_HOOKS = {
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
}
"""A module's hooks, and what else is kept of them."""


class ThreadBound:
    """Something that is attached; it belongs to the thread or task that entered it."""

    def __init__(self) -> None:
        """Belong to nobody yet."""
        self._mark = object()

    @property
    def is_here(self) -> bool:
        """Say whether this thread or task entered it."""
        return self._mark in _HERE.get()

    def enter_here(self) -> None:
        """Belong to this thread or task, and to the tasks that it begins."""
        _HERE.set(_HERE.get() | {self._mark})

    def leave_here(self) -> None:
        """Belong to nobody any more."""
        _HERE.set(_HERE.get() - {self._mark})

    @contextmanager
    def here(self) -> Iterator[None]:
        """Belong to this thread or task for a while."""
        self.enter_here()
        try:
            yield
        finally:
            self.leave_here()


class Attachments:
    """What is attached to one module; made when it is first needed, gone after its last use."""

    def __init__(self, module: nn.Module) -> None:
        """Attach nothing yet."""
        self._module = module
        self._lent: dict[str, Any] = {}  # what the attributes were; _ABSENT if there was none
        self._listeners: dict[str, list[Listener]] = {}
        self._hooks: list[Any] = []
        self._uses = 0

    def listen(self, method: str, listener: Listener) -> Close:
        """Let a listener wrap a method; return what ends it."""
        with _LOCK, self._use():
            if method not in self._listeners:
                self._listeners[method] = []
                self._lend(method, self._wrapped(method, getattr(self._module, method)))
            self._listeners[method].append(listener)
        return partial(self._unlisten, method, listener)

    def _wrapped(self, method: str, original: Callable[..., Any]) -> Callable[..., Any]:
        listeners = self._listeners[method]

        @wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            inner = original
            for listener in tuple(listeners):
                inner = partial(listener, inner)
            return inner(*args, **kwargs)

        return call

    def _unlisten(self, method: str, listener: Listener) -> None:
        with _LOCK:
            self._listeners[method].remove(listener)
            if not self._listeners[method]:
                del self._listeners[method]
                self._give_back(method)
            self._leave()

    def hook(self, register: str, fn: Callable[..., Any], **settings: Any) -> Close:
        """Set a hook by `register_forward_hook` or its kin; return what removes it."""
        with _LOCK, self._use():
            handle = getattr(self._module, register)(fn, **settings)
            self._hooks.append(fn)
            self._move_captures_back()
        return partial(self._unhook, handle, fn)

    def _unhook(self, handle: Any, fn: Callable[..., Any]) -> None:
        with _LOCK:
            handle.remove()
            self._hooks.remove(fn)
            self._leave()

    def _move_captures_back(self) -> None:
        """Let hooks of transformers that only collect outputs see what is edited."""
        hooks = self._module._forward_hooks
        for key in [k for k, fn in hooks.items() if is_output_capture(fn)]:
            hooks.move_to_end(key)  # type: ignore[attr-defined]

    def lend(self, name: str, value: Any) -> Close:
        """Put another object under an attribute's name; return what gives it back."""
        with _LOCK, self._use():
            self._lend(name, value)
        return partial(self._unlend, name)

    def _unlend(self, name: str) -> None:
        with _LOCK:
            self._give_back(name)
            self._leave()

    def _lend(self, name: str, value: Any) -> None:
        own = self._module.__dict__
        self._lent[name] = own.get(name, _ABSENT)
        own[name] = value

    def _give_back(self, name: str) -> None:
        before = self._lent.pop(name)
        if before is _ABSENT:
            self._module.__dict__.pop(name, None)
        else:
            self._module.__dict__[name] = before

    @contextmanager
    def _use(self) -> Iterator[None]:
        """Count one more use, unless it cannot be begun."""
        self._uses += 1
        try:
            yield
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        self._uses -= 1
        if not self._uses:
            for name in (_ATTACHED, _REDUCE):
                self._module.__dict__.pop(name, None)

    def reduce(self, protocol: Any) -> Any:
        """Return what copies and pickles are made from: the module without anything attached."""
        reduced: Any = type(self._module).__reduce_ex__(self._module, protocol)
        if not isinstance(reduced, tuple) or len(reduced) < 3 or not isinstance(reduced[2], dict):
            return reduced  # of a class with a way of its own
        make, given, state, *more = reduced
        return (make, given, self._clean(state), *more)

    def _clean(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a module's state without hooks of ours, and with what was lent given back."""
        state = {k: v for k, v in state.items() if k not in (_ATTACHED, _REDUCE)}
        for name, before in self._lent.items():
            if before is _ABSENT:
                state.pop(name, None)
            else:
                state[name] = before
        for name, others in _HOOKS.items():
            ours = {k for k, fn in state[name].items() if fn in self._hooks}
            for kept in (name, *others):
                state[kept] = type(state[kept])(
                    (k, v) for k, v in state[kept].items() if k not in ours
                )
        return state


_ABSENT = object()


def attachments(module: nn.Module) -> Attachments:
    """Return what is attached to a module; something new if nothing is."""
    with _LOCK:
        own = module.__dict__.get(_ATTACHED)
        if own is None:
            own = module.__dict__[_ATTACHED] = Attachments(module)
            module.__dict__[_REDUCE] = own.reduce
        return own
