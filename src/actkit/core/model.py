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
from actkit.core.context import ForwardContext
from actkit.core.edit import Edit
from actkit.core.engines import Ray, run_shares
from actkit.core.errors import EditError, InputError
from actkit.core.hooks import Hooks, Stop
from actkit.core.inputs import Batch, Encoder
from actkit.core.networks import find
from actkit.core.recording import Recording, Rows
from actkit.core.replace import replaced
from actkit.core.sites import Site
from actkit.core.stream import merged, observe, rows_at
from actkit.core.sweep import sweep
from actkit.core.taps import Read, Tap, check_reached, check_run

if TYPE_CHECKING:
    from actkit.store import Store

Names = str | Sequence[str]


class Model:
    """A network and what is needed to feed it; the instrument's one object.

    Attributes:
        module: The user's own network; never copied, rewritten or converted.
        tokenizer: The user's own tokenizer, None if there is none.
        processor: The user's own processor, None if there is none.
        name: What it was opened as.
        note: How its points were found.
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
    ) -> None:
        """Look at the structure; a decoder without a table is run on ten tokens to prove it."""
        self.module, self.tokenizer, self.processor = module, tokenizer, processor
        self.name, self.opener = name or type(module).__name__, opener
        self.encode = Encoder(module, tokenizer, processor)
        network = find(module)
        self.note = network.note
        self._roots = network.roots or {}
        turned = network.tokens_first
        self._addresses = Addresses(module, network.sites, network.prefixes, turned)

    def __repr__(self) -> str:
        """Return name, class and size."""
        size = sum(p.numel() for p in self.module.parameters()) / 1e6
        return f"Model({self.name!r}, {type(self.module).__name__}, {size:.1f}M parameters)"

    def sites(self, pattern: str | None = None, refused: bool = False) -> list[Site]:
        """Return the sites that match a pattern.

        Args:
            pattern: A name, alias, module path or glob pattern; all points if None.
            refused: Also return what this network lacks, with the reason in `Site.refused`.

        Raises:
            SiteError: Nothing matches; the message lists the nearest names.
        """
        return self._addresses.listed(pattern, refused)

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
                a tuple of positional inputs, or `ak.Call` for any others.
            record: Sites, aliases or patterns.
            edits: Applied in order; a recording shows what flows on after them.
            logits: Also keep the network's logits.
            grad: Keep the graph, so that recorded tensors can be differentiated.
        """
        values: dict[str, Tensor] = {}
        rows: dict[str, Rows] = {}

        def keep(site: Site, x: Tensor, context: ForwardContext) -> None:
            values[site.name] = x if grad else x.detach()
            rows[site.name] = rows_at(site, x, context)

        batch = self.encode(inputs)
        sites = self._addresses.find(record)
        taps = self._taps(sites, keep, edits)
        output = self._forward(batch, taps, grad, bool(sites) and not logits)
        check_run(taps)
        main = next(iter(rows.values()), None) if batch.tokens is None else _token_rows(batch)
        if main is None:
            main = Rows.of(torch.ones(0, 0, dtype=torch.bool))
        found = _logits(output) if logits else None
        axes = {s.name: s.axes for s in sites}
        return Recording({s.name: values[s.name] for s in sites}, rows, main, found, output, axes)

    def generate(
        self,
        prompts: Any,
        edits: Sequence[Edit] = (),
        max_new_tokens: int = 40,
        cache: Any = None,
        **settings: Any,
    ) -> list[str]:
        """Continue prompts with the network's own `generate`; edits act on every step.

        Args:
            prompts: As in `run`.
            edits: As in `run`; `Where(tokens="generated")` leaves the prompt alone.
            max_new_tokens: How many tokens to write at most.
            cache: A `transformers.Cache`; its own kind if None.
            settings: Passed to `generate`; greedy unless `do_sample=True`.

        Returns:
            The new text of each row, without the prompt.
        """
        batch = self.encode(prompts)
        generate: Any = getattr(self.module, "generate", None)
        if generate is None or self.tokenizer is None:
            raise InputError(f"generate needs a language model with a tokenizer, got {self!r}")
        self._check_room(batch, max_new_tokens)
        settings = {"do_sample": False, "max_new_tokens": max_new_tokens, **settings}
        settings.setdefault("pad_token_id", _pad_id(self.module, self.tokenizer))
        if edits and settings.get("use_cache") is False:
            raise EditError(
                "edits in generate need use_cache=True: it tells prompt and written tokens apart"
            )
        if cache is not None:
            settings["past_key_values"] = cache
        kwargs = {k: v for k, v in batch.kwargs.items() if k != "position_ids"}
        with torch.no_grad(), self.edited(edits):
            written = generate(**kwargs, **settings)
        written = getattr(written, "sequences", written)
        encoder_decoder = getattr(self.module.config, "is_encoder_decoder", False)
        start = 0 if encoder_decoder or batch.tokens is None else batch.tokens.shape[1]
        texts: list[str] = self.tokenizer.batch_decode(written[:, start:], skip_special_tokens=True)
        return texts

    @contextmanager
    def edited(self, edits: Sequence[Edit]) -> Iterator[None]:
        """Keep edits in place around the user's own loop.

        Raises:
            EditError: When the context ends, if an edit's site never ran inside it.
        """
        taps = self._taps([], None, edits)
        with Hooks(self.module, taps, self._roots):
            yield
        check_reached(taps)

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
        return sweep(self, inputs, variants, metric, at, batch, grad)

    def observe(
        self,
        data: Any,
        readings: Mapping[Any, Sequence[Any]],
        batch_size: int = 8,
        edits: Sequence[Edit] = (),
        engine: str | Ray = "local",
    ) -> dict[Any, list[Any]]:
        """Stream data through readings in constant memory.

        Args:
            data: An iterable of inputs, or a function that opens one; single texts are batched.
            readings: For each site or pattern the readings to copy and feed at each site; for a
                tuple of them the joint readings to feed at all of them together.
            batch_size: How many texts to run at once.
            edits: As in `run`.
            engine: "local"; "ray", or `actkit.core.engines.Ray` with settings: each worker feeds
                readings of its own with its share of the batches, and they are merged.

        Returns:
            For each site, and for each tuple, its own readings, fed.
        """
        share = partial(observe, self, data, readings, batch_size, edits)
        return merged(run_shares(share, engine, "observing"))

    def harvest(self, data: Any, record: Names, to: Any, **settings: Any) -> "Store":
        """Record a corpus to disk; resumes after the last committed shard.

        Args:
            data: As in `observe`.
            record: Sites or patterns.
            to: Folder of the store.
            settings: Of `actkit.store.harvest`: dtype, batch_size, shard_bytes, engine, edits.
        """
        from actkit.store.harvest import harvest

        return harvest(self, data, record, to, **settings)

    def stream(
        self, batch: Batch, sites: Sequence[Site], read: Read, edits: Sequence[Edit] = ()
    ) -> None:
        """Run one batch and hand each site's tensor to `read` while it flows; keep nothing."""
        self._forward(batch, self._taps(sites, read, edits), grad=False, stop=True)

    def _forward(self, batch: Batch, taps: list[Tap], grad: bool, stop: bool) -> Any:
        """Run the network under taps; return its output, None if it was stopped."""
        hooks = Hooks(self.module, taps, self._roots, stop)
        hooks.given = (batch.tokens, batch.valid)
        with hooks, torch.set_grad_enabled(grad):
            try:
                output = self.module(*batch.args, **batch.kwargs)
            except Stop:
                return None
        check_reached(taps)
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

        for edit in edits:
            for site in self._addresses.find(edit.site):
                if not edit.operation.neutral:
                    tap_at(site).edits.append(edit)
        for site in sites:
            tap_at(site).read = read
        return taps

    def _check_room(self, batch: Batch, max_new_tokens: int) -> None:
        length = self.encode.context_length()
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


def _pad_id(module: Any, tokenizer: Any) -> int:
    found = (getattr(tokenizer, n, None) for n in ("pad_token_id", "eos_token_id"))
    return next((int(i) for i in found if i is not None), 0)
