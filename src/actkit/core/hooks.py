"""Hooks: set and removed in one place, in `finally`.

A tap is what is done at one site: edits in order, then a read of what flows on. Taps of one run
are grouped by module and side, so a module carries at most one hook for each side.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actkit.core.attention import AttentionSocket
from actkit.core.edit import Edit
from actkit.core.errors import EditError, SiteError
from actkit.core.experts import ExpertSocket
from actkit.core.layout import axes_of, rows_back, rows_first
from actkit.core.moment import Moment
from actkit.core.sites import Site

Read = Callable[[Site, Tensor, Moment], None]


class Stop(Exception):  # noqa: N818
    """Raised inside a forward pass once every asked site was read; caught by the run."""


@dataclass(eq=False)
class Tap:
    """What is done at one site in one run."""

    site: Site
    edits: list[Edit] = field(default_factory=list)
    read: Read | None = None
    fired: bool = False
    _ready: list[Edit] | None = None

    def pass_on(self, raw: Tensor, moment: Moment, first: bool = True) -> Tensor:
        """Edit and, in a module's first call, read; return the tensor that flows on."""
        x = self._view(raw, moment.batch)
        if self.edits:
            x = self._edited(x, moment)
            raw = self._put(raw, x, moment.batch)
        self.fired = True
        if self.read is not None and first:
            self.read(self.site, x, moment)
        return raw

    def _edited(self, x: Tensor, moment: Moment) -> Tensor:
        axes = self.site.axes or axes_of(x)
        if self.site.head is not None and axes == "BTHK":
            axes = "BTD"
        rows = rows_first(x, axes)
        moment.batch = moment.batch or len(rows)
        for edit in self._fitted(rows, axes):
            rows = edit.write(rows, moment)
        return rows_back(rows, axes, x)

    def _fitted(self, rows: Tensor, axes: str) -> list[Edit]:
        """Return the edits with their tensors like the rows; kept unless gradients pass."""
        if self._ready is not None:
            return self._ready
        for edit in self.edits:
            _check_width(edit, rows.shape[2:])
        ready = [replace(e, operation=e.operation.like(rows, axes)) for e in self.edits]
        if not any(t.requires_grad for e in self.edits for t in e.operation.tensors().values()):
            self._ready = ready
        return ready

    def _view(self, raw: Tensor, batch: int) -> Tensor:
        x = self.site.place.layout.get(raw, batch)
        if self.site.head is None:
            return x
        return x[:, self.site.head] if self.site.axes == "BTS" else x[:, :, self.site.head]

    def _put(self, raw: Tensor, x: Tensor, batch: int) -> Tensor:
        if self.site.head is None:
            return self.site.place.layout.put(raw, x, batch)
        changed = raw.clone()
        self._view(changed, batch).copy_(x)
        return changed


def _check_width(edit: Edit, unit: tuple[int, ...]) -> None:
    """Refuse tensors that are wider or narrower than the site's rows."""
    where, width = edit.where, edit.operation.width()
    if width is None or where.units is not None:
        return
    if width != unit[-1]:
        raise EditError(
            f"an edit must be as wide as its site: {edit.site} has width {unit[-1]}, "
            f"the {type(edit.operation).__name__.lower()} has width {width}"
        )


class Hooks:
    """The hooks of one run; a context manager that leaves nothing behind.

    Args:
        module: The network.
        taps: What to do at which site.
        stacks: Path of each stack's module by the stack's name.
        stop: Raise `Stop` once every tap that reads has read.
    """

    def __init__(
        self, module: nn.Module, taps: Iterable[Tap], stacks: Mapping[str, str], stop: bool = False
    ) -> None:
        """Plan the hooks; none is set before the context is entered."""
        self._module, self._taps, self._stop = module, list(taps), stop
        self._stacks = stacks
        self.moments: dict[str, Moment] = defaultdict(Moment)
        self._waiting = {id(t) for t in self._taps if t.read is not None}
        self._calls: dict[tuple[str, str], int] = defaultdict(int)
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

    def unfired(self) -> list[str]:
        """Return the sites of edits that never acted, since their module never ran."""
        return [t.site.name for t in self._taps if t.edits and not t.fired]

    def _set(self) -> None:
        self._door("", self._module)
        for name in {t.site.stack.name for t in self._taps if t.site.stack is not None}:
            self._door(f"stack {name}", self._module.get_submodule(self._stacks[name]))
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
            setter = {"in": self._into, "out": self._out, "experts": self._experts}[side]
            self._handles.append(setter(module, path, taps))
        for socket in sockets.values():
            self._sockets.append(socket)
            socket.open()

    def _door(self, name: str, module: nn.Module) -> None:
        """Keep the moment of a stack (of the network, for "") up to date."""

        def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._calls.clear()
            self.moments[name].begin(args, kwargs)
            self.moments[name].tell(*self.given)

        self._handles.append(module.register_forward_pre_hook(begin, with_kwargs=True))

    def _moment(self, tap: Tap) -> Moment:
        stack = tap.site.stack
        return self.moments["" if stack is None else f"stack {stack.name}"]

    def _run(self, taps: list[Tap], path: str, x: Tensor) -> Tensor:
        """Pass a tensor through the taps that this call of the module is meant for."""
        key = (path, taps[0].site.place.side)
        call = self._calls[key]
        self._calls[key] += 1
        for tap in taps:
            wanted = tap.site.place.call
            if wanted not in (None, call):
                continue
            x = tap.pass_on(x, self._moment(tap), first=call == 0 or wanted is not None)
            self._waiting.discard(id(tap))
        return x

    def _done(self, *_: Any) -> None:
        if self._stop and not self._waiting:
            raise Stop

    def _into(self, module: nn.Module, path: str, taps: list[Tap]) -> RemovableHandle:
        shared = any(t.site.place.shared and t.edits for t in taps)

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            key = None if args else _first_tensor(path, kwargs)
            x = args[0] if key is None else kwargs[key]
            new = self._run(taps, path, x)
            self._done()
            if new is x:
                return None
            if shared:
                x.copy_(new)
                return None
            if key is None:
                return (new, *args[1:]), kwargs
            return args, {**kwargs, key: new}

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def _out(self, module: nn.Module, path: str, taps: list[Tap]) -> RemovableHandle:
        items: dict[tuple[int | str, ...], list[Tap]] = defaultdict(list)
        for tap in taps:
            items[tap.site.place.item].append(tap)

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            for item, own in items.items():
                chain = item or _first_item(output)
                x = _get(output, chain, path)
                new = self._run(own, f"{path}{item}", x)
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


def _first_tensor(path: str, kwargs: dict[str, Any]) -> str:
    names = [k for k, v in kwargs.items() if isinstance(v, Tensor)]
    if not names:
        raise SiteError(f"{path}:in needs an input that is a tensor, got {list(kwargs)}")
    return "hidden_states" if "hidden_states" in names else names[0]


def _first_item(output: Any) -> tuple[int | str, ...]:
    """Return the way to the main tensor of what a module returned: itself, or its first item."""
    if isinstance(output, tuple | list):
        return (0, *_first_item(output[0]))
    if isinstance(output, Mapping):
        return tuple(k for k, v in output.items() if isinstance(v, Tensor))[:1]
    return ()


def _get(output: Any, chain: tuple[int | str, ...], path: str) -> Tensor:
    for item in chain:
        try:
            output = getattr(output, item) if isinstance(item, str) else output[item]
        except (AttributeError, IndexError, TypeError, KeyError) as error:
            raise SiteError(
                f"{path}:out has no item {item!r} in {type(output).__name__}"
            ) from error
    if not isinstance(output, Tensor):
        raise SiteError(f"{path}:out must be a tensor to be read, got {type(output).__name__}")
    return output


def _put(output: Any, chain: tuple[int | str, ...], value: Tensor) -> Any:
    """Return the output with the item at the end of the chain replaced."""
    if not chain:
        return value
    item, rest = chain[0], chain[1:]
    if isinstance(item, str):
        output[item] = _put(output[item], rest, value)
        return output
    items = list(output)
    items[item] = _put(items[item], rest, value)
    if hasattr(output, "_fields"):
        return type(output)(*items)
    return type(output)(items)
