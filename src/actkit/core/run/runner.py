"""Runner: one run of a network under edits and reads, which leaves it untouched.

Shapes: B batch, T tokens, D width, V variants.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from actkit.core.edits.edit import Edit, as_edits
from actkit.core.errors import InputError, SiteError
from actkit.core.run.alone import run_alone
from actkit.core.run.caches import caches_among
from actkit.core.run.context import ForwardContext
from actkit.core.run.fast_path import without_fast_path
from actkit.core.run.forms import explained, first_of_sentences
from actkit.core.run.hooks import Hooks, Stop
from actkit.core.run.inputs import Batch, Encoder
from actkit.core.run.mode import TrainingMode
from actkit.core.run.recording import Recording, Rows
from actkit.core.run.replace import replaced
from actkit.core.run.site_rows import rows_at
from actkit.core.run.taps import Read, Tap, check_acted, check_calls, check_reached, check_run
from actkit.core.run.told import told_by_run, told_by_user
from actkit.core.sites.discover import find
from actkit.core.sites.site import Site
from actkit.core.sites.site_names import SiteNames

Names = str | Site | Sequence[str | Site]


class Runner:
    """A network, its sites, and how it is fed and run; what takes many runs is built on it.

    Attributes:
        module: The user's own network; never copied, rewritten or converted.
        tokenizer: The user's own tokenizer, None if there is none.
        processor: The user's own processor, None if there is none.
        name: What it was opened as.
        note: How its points were found.
        encode: From what users give to what the network takes.
        shares: Whether sweeps were seen to change no number by sharing a run, by kind of batch.
    """

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Any = None,
        processor: Any = None,
        name: str = "",
        axes: Mapping[str, str] | None = None,
    ) -> None:
        """Look at the structure; a decoder without a table is run on ten tokens to prove it.

        `axes` tells which axis of modules' tensors is which, by site name or pattern.
        """
        first = first_of_sentences(module)
        self.module, self.processor = module, processor
        self.tokenizer = first.tokenizer if tokenizer is None and first is not None else tokenizer
        self.name = name or type(module).__name__
        self.encode = Encoder(module, self.tokenizer, processor)
        self._mode = TrainingMode(module, self.name)
        network = find(module)
        self._note = network.note
        self._roots = network.roots or {}
        self.shares: dict[Any, bool] = {}
        self._site_names = SiteNames(
            module, network.sites, network.prefixes, axes, network.tokens_first
        )

    def __repr__(self) -> str:
        """Return name, class and size."""
        size = sum(p.numel() for p in self.module.parameters()) / 1e6
        what = f"{type(self.module).__name__}, {size:.1f}M parameters"
        return f"{type(self).__name__}({self.name!r}, {what})"

    @property
    def note(self) -> str:
        """Return how its points were found, and why rows run one by one if they do."""
        return "; ".join(filter(None, (self._note, self.encode.note)))

    def sites(self, pattern: str | None = None, refused: bool = False) -> list[Site]:
        """Return the sites that match a pattern.

        Args:
            pattern: A name, alias, module path or glob pattern; all points if None.
            refused: Also return what this network lacks, with the reason in `Site.refused`.

        Raises:
            SiteError: Nothing matches; the message lists the nearest names.
        """
        return self._site_names.listed(pattern, refused)

    def site(self, name: str) -> Site:
        """Return the one site of a name, an alias or a module path.

        Raises:
            SiteError: There is none, or a pattern matches several.
        """
        found = self._site_names.find(name)
        if len(found) != 1:
            raise SiteError(f"{name!r} must be one site, it matches {len(found)}")
        return found[0]

    def run(
        self,
        inputs: Any,
        record: Names = (),
        edits: Sequence[Edit] = (),
        logits: bool = False,
        grad: bool = False,
    ) -> Recording:
        """Run the network once and record sites.

        The run stops after the last site that is needed. Without anything to record it runs to
        the end, and `Recording.output` holds what the network returned.

        Args:
            inputs: Text or a list of it, chat messages, token ids, a batch as a dict, an array,
                a tuple of positional inputs, or `ak.Call` for any others. Rows of different
                lengths are padded where the network can take it; where it cannot, they run one
                by one, `Recording.output` is a list, and gradients need a single row.
            record: Sites, aliases or patterns.
            edits: Applied in order; a recording shows what flows on after them.
            logits: Also keep the network's logits.
            grad: Keep the graph, so that recorded tensors can be differentiated.
        """
        batch, sites = self.encode(inputs), self._site_names.find(record)
        each = partial(self._record, sites=sites, logits=logits, grad=grad)
        parts = self.encode.split(batch)
        if len(parts) > 1:
            if grad:
                raise InputError(f"gradients need one run, but {self.encode.note}: give one row")
            return run_alone(batch, parts, edits, self._site_names.find, each)
        recording, taps = each(batch, edits)
        check_acted(taps)
        check_run(taps)
        return recording

    def _record(
        self, batch: Batch, edits: Sequence[Edit], sites: Sequence[Site], logits: bool, grad: bool
    ) -> tuple[Recording, list[Tap]]:
        """Run one batch; return its recording, and the taps, which know what happened."""
        values: dict[str, Tensor] = {}
        rows: dict[str, Rows | SiteError] = {}
        axes: dict[str, str] = {}

        def keep(site: Site, x: Tensor, context: ForwardContext) -> None:
            values[site.name] = x if grad else x.detach()
            try:
                rows[site.name] = rows_at(site, x, context)
                axes[site.name] = site.axes_of(x)
            except SiteError as error:
                rows[site.name] = error  # the tensor can be had; who asks for its rows is told

        taps = self._taps(sites, keep, edits)
        output = self._forward(batch, taps, grad, bool(sites) and not logits)
        known = (own for own in rows.values() if isinstance(own, Rows))
        main = next(known, None) if batch.tokens is None else _token_rows(batch)
        if main is None:
            main = Rows.of(torch.ones(0, 0, dtype=torch.bool))
        found = _logits(output) if logits else None
        kept = {s.name: values[s.name] for s in sites if s.name in values}
        return Recording(kept, rows, main, found, output, axes), taps

    @contextmanager
    def edited(self, edits: Sequence[Edit], prompt: Any = None) -> Iterator[None]:
        """Keep edits in place around the user's own loop, in this thread or task.

        What is prompt and what was written is known from calls of `generate`; in a loop of
        another kind a pass of several tokens is a prompt, and a single token that comes on the
        cache of an earlier pass was written. Passes that could mean either are refused, unless
        `prompt` tells.

        Args:
            edits: As in `run`.
            prompt: The inputs, as in `run`, that the loop begins with; it may feed them in
                pieces, and without a cache again and again.

        Raises:
            EditError: When the context ends, if an edit never acted inside it.
        """
        taps = self._taps([], None, edits)
        told = None if prompt is None else told_by_user(self.encode(prompt))
        hooks = Hooks(self.module, taps, self._roots, told=told)
        with without_fast_path(self.module), hooks:
            yield
        check_reached(taps, hooks.passed_elsewhere)
        check_acted(taps)
        check_calls(taps)

    @contextmanager
    def replaced(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Let other modules stand in for those at the given paths; restored afterwards."""
        with replaced(self.module, modules):
            yield

    def stream(
        self, batch: Batch, sites: Sequence[Site], read: Read, edits: Sequence[Edit] = ()
    ) -> None:
        """Run one batch and hand each site's tensor to `read` while it flows; keep nothing.

        Raises:
            InputError: The rows must run one by one: pass the parts of `encode.split`.
        """
        if len(self.encode.split(batch)) > 1:
            raise InputError(f"this takes one run, but {self.encode.note}: give one row")
        self._forward(batch, self._taps(sites, read, edits), grad=False, stop=True)

    def _forward(self, batch: Batch, taps: list[Tap], grad: bool, stop: bool) -> Any:
        """Run the network under taps; return its output, None if it was stopped."""
        # a cache of the user's own must not be left half filled
        stop = stop and not caches_among([*batch.args, *batch.kwargs.values()])
        hooks = Hooks(self.module, taps, self._roots, stop, told_by_run(batch))
        # what a network is given as a dict it may write into
        args = tuple(dict(a) if type(a) is dict else a for a in batch.args)
        with (
            self._mode.kept(),
            without_fast_path(self.module),
            hooks,
            torch.set_grad_enabled(grad),
            explained(batch),
        ):
            try:
                output = self.module(*args, **batch.kwargs)
            except Stop:
                return None
        check_reached(taps)
        check_calls(taps)
        return output

    def _taps(self, sites: Sequence[Site], read: Read | None, edits: Sequence[Edit]) -> list[Tap]:
        """Return taps in order: edits, then reads; a place may be met under several names."""
        taps: list[Tap] = []
        latest: dict[tuple[str, str], Tap] = {}

        def tap_at(site: Site) -> Tap:
            spot = (site.place.path, site.place.side)
            if spot not in latest or latest[spot].site.name != site.name:
                latest[spot] = Tap(site)
                taps.append(latest[spot])
            return latest[spot]

        for edit in as_edits(edits):
            for site in self._site_names.find(edit.site):
                if not edit.operation.neutral:
                    tap_at(site).edits.append(edit)
        for site in sites:
            tap_at(site).read = read
        return taps


def _token_rows(batch: Batch) -> Rows | None:
    if batch.tokens is None:
        return None
    valid = torch.ones_like(batch.tokens, dtype=torch.bool) if batch.valid is None else batch.valid
    return Rows.of(valid, batch.tokens)


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise InputError(f"this network returns no logits but {type(output).__name__}")
    return logits
