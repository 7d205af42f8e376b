"""Taps: what is done at one site in one run, edits in order, then a read of what flows on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from actkit.core.edits.edit import Edit, axes_for_edits
from actkit.core.errors import EditError, SiteError
from actkit.core.run.context import ForwardContext
from actkit.core.sites.layout import PLAIN, rows_back, rows_first
from actkit.core.sites.site import Site

Read = Callable[[Site, Tensor, ForwardContext], None]


@dataclass(eq=False)
class Tap:
    """What is done at one site in one run."""

    site: Site
    edits: list[Edit] = field(default_factory=list)
    read: Read | None = None
    fired: bool = False
    acted: set[int] = field(default_factory=set)
    unfinite: Tensor | None = None  # NaN if a value was not finite, 0 otherwise
    calls: int = 0
    _ready: list[Edit] | None = None
    _met: tuple[torch.Size, int] | None = None
    _axes: str = ""  # of a tensor of the shape, and in a batch of the size, that was met last
    _copy: Tensor | None = None

    def __post_init__(self) -> None:
        """Note under which name the pass of the site's stack is known."""
        own = self.site.stack
        self.stack = None if own is None else f"stack {own.name}"

    def pass_on(self, raw: Tensor, context: ForwardContext, first: bool = True) -> Tensor:
        """Edit and, in a module's first call, read; return the tensor that flows on."""
        x = self._view(raw, context.batch)
        if self.edits:
            new = self._edited(x, context)
            raw = raw if new is x else self._put(raw, new, context.batch)
            x = new
        self.fired = True
        if self.read is not None and first:
            if torch.is_grad_enabled() and x.is_floating_point():
                x, raw = self._in_graph(x, raw, context.batch)
            elif self.site.place.overwritten:
                x = x.clone()
            self.read(self.site, x, context)
        return raw

    @property
    def counts_calls(self) -> bool:
        """Say whether the site is a module's, which may run again, and no call of it was chosen."""
        return self.site.known is not None and self.site.place.call is None

    @property
    def writes(self) -> bool:
        """Say whether another tensor flows on: an edited one, or a view put in for gradients."""
        view = self.site.place.layout != PLAIN and self.read is not None
        return bool(self.edits) or (view and torch.is_grad_enabled())

    @property
    def overwritten(self) -> bool:
        """Say whether the network overwrote its input, of which only a copy flowed on."""
        place = self.site.place
        return place.side == "in" and self._copy is not None and self._copy._version > 0

    def _in_graph(self, x: Tensor, raw: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Return x and what flows on such that gradients of what follows reach x.

        A copy flows on, since the network may overwrite it.
        """
        if self.site.place.is_stream:
            x = x.requires_grad_()
            return x, raw if x is raw else self._put(raw, x, batch)
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        elif x is raw and self.site.place.side == "in":
            x = x.clone()  # others may read the input, too, and their gradients are not meant
        if raw.shape == x.shape:
            self._copy = x.clone()
            return x, self._put(raw, self._copy, batch)
        return x, self._put(raw, x, batch)

    def _edited(self, x: Tensor, context: ForwardContext) -> Tensor:
        met = (x.shape, context.batch)
        if self._met != met:
            self._met, self._axes = met, axes_for_edits(self.site, x, self.edits, context.batch)
        axes = self._axes
        rows = given = rows_first(x, axes)
        context = context.whole() if axes in ("BD", "BC") else context
        if not torch.is_grad_enabled() and any(e.batch_rows is not None for e in self.edits):
            rows = rows.clone()  # edits of blocks of rows write into it
        for i, edit in enumerate(self._fitted(rows, axes)):
            new = edit.write(rows, context)
            if new is not rows or edit.operation.may_rest:
                self.acted.add(i)
            rows = new
        self.unfinite = (rows * 0).sum()
        return x if rows is given else rows_back(rows, axes, x)

    def _fitted(self, rows: Tensor, axes: str) -> list[Edit]:
        """Return the edits with their tensors like the rows; kept unless gradients pass."""
        if self._ready is not None:
            return self._ready
        for edit in self.edits:
            edit.check_width(rows.shape[-1])
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


def check_reached(taps: Sequence[Tap], elsewhere: bool = False) -> None:
    """Refuse edits of which no site ever ran; of a pattern's sites one is enough.

    Args:
        taps: Of all passes.
        elsewhere: Whether passes ran in other threads or tasks.

    Raises:
        EditError: An edit's site never ran.
    """
    reached = {id(e) for tap in taps if tap.fired for e in tap.edits}
    other = ": it ran in another thread, which sees no edits of this one" * elsewhere
    for site in (e.site for tap in taps for e in tap.edits if id(e) not in reached):
        raise EditError(f"an edit must act, but {site} never ran{other}")


def check_acted(taps: Sequence[Tap]) -> None:
    """Refuse edits that met nothing at any of the sites that ran."""
    acted = {id(e) for tap in taps for i, e in enumerate(tap.edits) if i in tap.acted}
    for tap in taps:
        for edit in (e for e in tap.edits if tap.fired and id(e) not in acted):
            raise EditError(
                f"an edit must act, but the {edit.operation.name} at {tap.site.name} met nothing "
                f"where {edit.where}"
            )


def check_calls(taps: Sequence[Tap]) -> None:
    """Refuse to read a module that ran several times, or to edit it under one of several names.

    Raises:
        SiteError: A read could mean any of the calls.
        EditError: So could an edit, since the module stands at several places.
    """
    for tap in (t for t in taps if t.counts_calls and t.calls > 1):
        site, others = tap.site.name, tap.site.others
        calls = ", ".join(f"{site}#{i}" for i in range(tap.calls))
        named = f" and is also {', '.join(others)}" if others else ""
        said = f"{site} ran {tap.calls} times in one pass{named}: say which call is meant, {calls}"
        if tap.read is not None:
            raise SiteError(said)
        if others:
            raise EditError(said)


def check_run(taps: Sequence[Tap]) -> None:
    """Refuse a run in which something that was asked did not happen."""
    for tap in taps:
        name = tap.site.name
        if tap.read is not None and not tap.fired:
            raise SiteError(f"a site must run to be recorded, but {name} never ran")
        if tap.overwritten:
            raise SiteError(
                f"gradients need what was recorded to stay, but the network overwrote {name}: "
                "record the output of the module before it"
            )
