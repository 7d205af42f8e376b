"""Model: opens a network, runs it, leaves it untouched.

Shapes: B batch, T tokens, D width, V variants.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from actkit.core.addresses import Addresses
from actkit.core.alone import edits_of_row, run_alone
from actkit.core.caches import caches_among
from actkit.core.compat import cache_keywords, generation_setting
from actkit.core.context import ForwardContext
from actkit.core.edit import Edit, as_edits
from actkit.core.engines import Ray, run_shares
from actkit.core.errors import EditError, InputError, SiteError
from actkit.core.fast_path import without_fast_path
from actkit.core.forms import explained, first_of_sentences
from actkit.core.hooks import Hooks, Stop
from actkit.core.inputs import Batch, Encoder
from actkit.core.mode import TrainingMode
from actkit.core.networks import find
from actkit.core.recording import Recording, Rows
from actkit.core.replace import replaced
from actkit.core.sites import Site
from actkit.core.stream import Observed, Pass, merged, observe, rows_at
from actkit.core.sweep import sweep
from actkit.core.taps import Read, Tap, check_acted, check_calls, check_reached, check_run
from actkit.core.told import (
    behind_prompt,
    generation_settings,
    token_ids,
    told_by_run,
    told_by_user,
)

if TYPE_CHECKING:
    from actkit.store import Store

Names = str | Site | Sequence[str | Site]


class Model:
    """A network and what is needed to feed it; the instrument's one object.

    Attributes:
        module: The user's own network; never copied, rewritten or converted.
        tokenizer: The user's own tokenizer, None if there is none.
        processor: The user's own processor, None if there is none.
        name: What it was opened as.
        note: How its points were found.
        shares: Whether sweeps were seen to change no number by sharing a run, by kind of batch.
        opener: A function that opens it again in another process, as the engine `ray` needs it;
            None, to be set by you, if it was opened from a module.
    """

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Any = None,
        processor: Any = None,
        name: str = "",
        opener: "Callable[[], Model] | None" = None,
        axes: Mapping[str, str] | None = None,
    ) -> None:
        """Look at the structure; a decoder without a table is run on ten tokens to prove it.

        `axes` tells which axis of modules' tensors is which, by site name or pattern.
        """
        first = first_of_sentences(module)
        self.module, self.processor = module, processor
        self.tokenizer = first.tokenizer if tokenizer is None and first is not None else tokenizer
        self.name, self.opener = name or type(module).__name__, opener
        self.encode = Encoder(module, self.tokenizer, processor)
        self._mode = TrainingMode(module, self.name)
        network = find(module)
        self._note = network.note
        self._roots = network.roots or {}
        self.shares: dict[Any, bool] = {}
        self._addresses = Addresses(
            module, network.sites, network.prefixes, axes, network.tokens_first
        )

    def __repr__(self) -> str:
        """Return name, class and size."""
        size = sum(p.numel() for p in self.module.parameters()) / 1e6
        return f"Model({self.name!r}, {type(self.module).__name__}, {size:.1f}M parameters)"

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
        return self._addresses.listed(pattern, refused)

    def site(self, name: str) -> Site:
        """Return the one site of a name, an alias or a module path.

        Raises:
            SiteError: There is none, or a pattern matches several.
        """
        found = self._addresses.find(name)
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
        batch, sites = self.encode(inputs), self._addresses.find(record)
        each = partial(self._record, sites=sites, logits=logits, grad=grad)
        parts = self.encode.split(batch)
        if len(parts) > 1:
            if grad:
                raise InputError(f"gradients need one run, but {self.encode.note}: give one row")
            return run_alone(batch, parts, edits, self._addresses.find, each)
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

    def generate(
        self,
        prompts: Any,
        edits: Sequence[Edit] = (),
        max_new_tokens: int | None = None,
        cache: Any = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> list[str]:
        """Continue prompts with the network's own `generate`; edits act on every step.

        Args:
            prompts: As in `run`.
            edits: As in `run`; `Where(tokens="generated")` leaves the prompt alone.
            max_new_tokens: How many tokens to write at most; 40 unless `settings` tell.
            cache: A `transformers.Cache`; its own kind if None.
            chat_template_kwargs: Keywords of the chat template, `{"enable_thinking": False}`.
            settings: Passed to `generate`. Without a `generation_config` it is greedy unless
                `do_sample=True`.

        Returns:
            The new text of each row, without the prompt; of each of its sequences where several
            are asked for.
        """
        edits = as_edits(edits)
        batch = self.encode(prompts, template=chat_template_kwargs)
        module: Any = self.module
        if not hasattr(module, "generate") or self.tokenizer is None:
            raise InputError(f"generate needs a language model with a tokenizer, got {self!r}")
        settings = generation_settings(module, self.tokenizer, max_new_tokens, settings)
        self._check_room(batch, settings)
        if edits and generation_setting(module, settings, "use_cache") is False:
            raise EditError(
                "edits in generate need use_cache=True: without a cache all tokens run again in "
                "every pass; use m.edited(edits) around the network's own generate"
            )
        if cache is not None:
            settings |= cache_keywords(module, cache)
        parts = self.encode.split(batch, writes=True)
        if len(parts) == 1:
            return self._written(parts[0], edits, settings)
        if cache is not None:
            why = self.encode.note or "this network writes behind rows without padding only"
            raise InputError(f"a cache needs rows that run together, but {why}")
        texts: list[str] = []
        for row, part in enumerate(parts):
            own = dict(edits_of_row(edits, row, batch, self._addresses.find))
            texts += self._written(part, list(own.values()), settings)
        return texts

    def _written(
        self, batch: Batch, edits: Sequence[Edit], settings: Mapping[str, Any]
    ) -> list[str]:
        """Let the network continue a batch of prompts; return the new texts."""
        module: Any = self.module
        kwargs = {k: v for k, v in batch.kwargs.items() if k != "position_ids"}
        with torch.no_grad(), self._mode.kept(), self.edited(edits):
            written = module.generate(**kwargs, **settings)
        written = token_ids(getattr(written, "sequences", written))
        answers = getattr(module.config, "is_encoder_decoder", False)
        new = behind_prompt(written, None if answers else batch.tokens)
        texts: list[str] = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return texts

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

    def sweep(
        self,
        inputs: Any,
        variants: Sequence[Sequence[Edit]],
        metric: Callable[[Tensor], Tensor],
        at: Any = "last",
        batch: int | str = "auto",
        grad: bool = False,
    ) -> Tensor:
        """Run many edited versions of the same inputs; return the metric of each, (V, B).

        Versions share what they have in common: in a decoder, blocks and tokens before a
        version's first edit are not computed again.

        Args:
            inputs: As in `run`; B rows.
            variants: One list of edits for each of V versions.
            metric: Takes logits (n, P, vocabulary) at the asked positions, returns (n,).
            at: "last", an index, or a slice of positions, counted from each row's first valid
                token, or from its last.
            batch: How many rows run at once; "auto", as many as fit into 1 GB of activations;
                or another budget, "500MB".
            grad: Keep the graph, so that the metric can be differentiated by what is in edits.
        """
        if isinstance(variants, Edit):
            raise EditError(f"variants must be lists of edits, got one edit: {variants!r}")
        versions = [as_edits(v) for v in variants]
        return sweep(self, inputs, versions, metric, at, batch, grad)

    def observe(
        self,
        data: Any,
        readings: Mapping[Any, Sequence[Any]],
        batch_size: int = 8,
        edits: Sequence[Edit] = (),
        engine: str | Ray = "local",
        on_bad: str = "raise",
    ) -> Observed:
        """Stream data through readings in constant memory.

        Args:
            data: An iterable of inputs, or a function that opens one; single texts are batched.
            readings: For each site or pattern the readings to copy and feed at each site; for a
                tuple of them the joint readings to feed at all of them together.
            batch_size: How many texts to run at once.
            edits: As in `run`.
            engine: "local"; "ray", or `actkit.core.engines.Ray` with settings: each worker feeds
                readings of its own with its share of the batches, and they are merged.
            on_bad: "raise": a sample that the network cannot take (empty, beyond the context)
                ends the pass, and the message names it; "skip": it is left out.

        Returns:
            For each site, and for each tuple, its own readings, fed; `.skipped` lists what was
            left out.
        """
        share = partial(observe, self, data, readings, Pass(batch_size, as_edits(edits), on_bad))
        return merged(run_shares(share, engine, "observing"))

    def harvest(self, data: Any, record: Names, to: Any, **settings: Any) -> "Store":
        """Record a corpus to disk; resumes after the last committed shard.

        Args:
            data: As in `observe`.
            record: Sites or patterns.
            to: Folder of the store.
            settings: Of `actkit.store.harvest`: dtype, batch_size, shard_bytes, engine, edits,
                on_bad.
        """
        from actkit.store.harvest import harvest

        return harvest(self, data, record, to, **settings)

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
            for site in self._addresses.find(edit.site):
                if not edit.operation.neutral:
                    tap_at(site).edits.append(edit)
        for site in sites:
            tap_at(site).read = read
        return taps

    def _check_room(self, batch: Batch, settings: Mapping[str, Any]) -> None:
        length = self.encode.context_length()
        max_new_tokens = generation_setting(self.module, settings, "max_new_tokens") or 0
        used = 0 if batch.tokens is None else batch.tokens.shape[1]
        if length is not None and used + max_new_tokens > length:
            raise InputError(
                f"prompt and new tokens must fit the context of {length} tokens, "
                f"got {used} and {max_new_tokens}"
            )


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
