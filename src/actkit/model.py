"""Model: the one object of the instrument, a runner with all that takes many runs.

Shapes: B batch, T tokens, D width, V variants.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from actkit.core.compat import cache_keywords, generation_setting
from actkit.core.edits.edit import Edit, as_edits
from actkit.core.engines.engine import run_shares
from actkit.core.engines.settings import Ray
from actkit.core.errors import EditError, InputError, ModelError
from actkit.core.provenance import stamp
from actkit.core.run.alone import edits_of_row
from actkit.core.run.inputs import Batch
from actkit.core.run.runner import Names, Runner
from actkit.core.run.told import behind_prompt, generation_settings, token_ids
from actkit.core.sweep.stream import Observed, StreamPass, merged, observe
from actkit.core.sweep.sweep import sweep

if TYPE_CHECKING:
    from actkit.store import Store


class Model(Runner):
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
        super().__init__(module, tokenizer, processor, name, axes)
        self.opener = opener

    def travels_as(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return what makes an equal one in another process: a function and its arguments.

        Raises:
            ModelError: It has no opener.
        """
        if self.opener is None:
            raise ModelError(
                f"a worker opens the network itself, and {self.name} was opened from a module: "
                "set its opener to a function that returns it"
            )
        return _opened_again, (self.opener, stamp(self)["weights"])

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
            own = dict(edits_of_row(edits, row, batch, self._site_names.find))
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
            engine: "local"; "ray", or `ak.Ray` with settings: each worker feeds readings of its
                own with its share of the batches, and they are merged.
            on_bad: "raise": a sample that the network cannot take (empty, beyond the context)
                ends the pass, and the message names it; "skip": it is left out.

        Returns:
            For each site, and for each tuple, its own readings, fed; `.skipped` lists what was
            left out.
        """
        share = partial(
            observe, self, data, readings, StreamPass(batch_size, as_edits(edits), on_bad)
        )
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

    def _check_room(self, batch: Batch, settings: Mapping[str, Any]) -> None:
        length = self.encode.context_length()
        max_new_tokens = generation_setting(self.module, settings, "max_new_tokens") or 0
        used = 0 if batch.tokens is None else batch.tokens.shape[1]
        if length is not None and used + max_new_tokens > length:
            raise InputError(
                f"prompt and new tokens must fit the context of {length} tokens, "
                f"got {used} and {max_new_tokens}"
            )


def _opened_again(opener: Callable[[], Any], weights: str | None) -> Model:
    """Open a network in another process.

    Raises:
        ModelError: It is another one.
    """
    found = opener()
    model = found if isinstance(found, Model) else Model(found)
    own = stamp(model)["weights"]
    if own != weights:
        raise ModelError(
            f"a worker must open the same weights: {model.name} has SHA-256 {own} there, "
            f"the network it stands for {weights}"
        )
    return model
