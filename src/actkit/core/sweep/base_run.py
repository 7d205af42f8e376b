"""The base run: one run of some inputs, kept so that edited runs can start in its middle.

An edit at block l and token p changes nothing in the blocks before l and, where attention looks
back only, nothing at the tokens before p. A resumed run therefore begins at block l and token p,
with the base run's residual stream, keys and values for the rest. Several versions share a batch
and each enters at its own block, so no block computes a row that is still the base run's.

Shapes: B rows of the inputs, C copies of them in one batch (copy-major), n = C B rows, T tokens,
P asked positions, D width, G key-value heads, K head width, V vocabulary.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from actkit.core.compat import cache_argument, cache_keywords, output_cache
from actkit.core.edits.edit import Edit
from actkit.core.errors import EditError
from actkit.core.run.attachments import ThreadBound
from actkit.core.run.context import ForwardContext
from actkit.core.run.inputs import Batch
from actkit.core.run.recording import Recording
from actkit.core.run.told import told_by_run
from actkit.core.sites.layout import rows_first
from actkit.core.sites.site import Site
from actkit.core.sweep.blocks import Skip, block_paths, first_rows, hidden

if TYPE_CHECKING:
    from actkit.core.run.runner import Runner


class BaseRun(ThreadBound):
    """One run of the bare network, from whose middle edited runs go on.

    Attributes:
        batch: The inputs.
        asked: (B, P) columns whose logits are asked.
        logits: (B, P, V) of the bare network.
        num_blocks: Number of blocks.
        recorded: What the bare network has at the sites that were asked.
        context: Of the bare run.
    """

    def __init__(
        self,
        model: "Runner",
        inputs: Any,
        asked: Tensor | None = None,
        record: Sequence[Site] = (),
    ) -> None:
        """Run the network once.

        Args:
            model: A decoder of which `shares` holds.
            inputs: Token inputs, as in `Model.run`.
            asked: (B, P) columns whose logits are asked; the last of each row if None.
            record: Sites to keep what the bare network has there.
        """
        super().__init__()
        self._model, self.batch = model, model.encode(inputs)
        tokens = _tokens(self.batch)
        last = torch.full((len(tokens), 1), tokens.shape[1] - 1)
        self.asked = last if asked is None else asked.cpu()
        self._blocks = block_paths(model)
        self.num_blocks = len(self._blocks)
        self._columns = torch.unique(self.asked)
        self.context = ForwardContext(model.module)
        self.context.begin((), self.batch.kwargs, told_by_run(self.batch))
        self._values: list[Tensor] = []
        self._tuple = False
        self.recorded = self._run_once([site.name for site in record])
        self._cache: Any = output_cache(self.recorded.output)
        self.logits = self._picked(torch.as_tensor(self.recorded.logits), 0, 1)

    def _run_once(self, record: Sequence[str]) -> Recording:
        """Run the bare network, keeping what each block receives and what the last returns."""

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.is_here:
                self._values.append(hidden(args, kwargs))

        def end(_: nn.Module, __: Any, output: Any) -> None:
            if self.is_here:
                self._tuple = isinstance(output, tuple)
                self._values.append(output[0] if self._tuple else output)

        with self.here(), ExitStack() as stack:
            blocks = [self._model.module.get_submodule(path) for path in self._blocks]
            for block in blocks:
                handle = block.register_forward_pre_hook(keep, with_kwargs=True)
                stack.callback(handle.remove)
            stack.callback(blocks[-1].register_forward_hook(end).remove)
            settings = {**self._head(self._columns), "use_cache": True}
            batch = replace(self.batch, kwargs={**self.batch.kwargs, **settings})
            return self._model.run(batch, record, logits=True)

    @property
    def whole(self) -> bool:
        """Say whether the cache holds every block's keys of every token."""
        length = _tokens(self.batch).shape[1]
        layers = getattr(self._cache, "layers", ())
        keys = [getattr(layer, "keys", None) for layer in layers]
        holds_all = len(keys) == self.num_blocks and all(
            isinstance(k, Tensor) and k.dim() == 4 and k.shape[2] == length for k in keys
        )
        return holds_all and not any(map(_holds_more, layers))

    def resume(
        self,
        edits: Sequence[Edit],
        starts: Sequence[int],
        token: int = 0,
        grad: bool = False,
        whole_head: bool = False,
    ) -> Tensor:
        """Run several edited copies, each from its own block on.

        Sites see (rows, T - token, ...) values; in block l only the copies that start at l or
        before have rows.

        Args:
            edits: Of all copies; one with a `block` acts on rows copy * B to (copy + 1) * B.
            starts: The block at which each copy begins, increasing; `num_blocks` for what comes
                after the last.
            token: The column at which all begin.
            grad: Keep the graph.
            whole_head: Compute the logits of every token, for edits of the logits.

        Returns:
            (C B, P, V) logits at the asked columns.
        """
        copies, rows = len(starts), len(_tokens(self.batch))
        counts = [rows * sum(s <= b for s in starts) for b in range(self.num_blocks + 1)]
        columns = self._columns[self._columns >= token] - token
        settings = {} if whole_head or not len(columns) else self._head(columns)
        batch = self._tail(copies, token, settings, counts)
        first = starts[0]
        with self.here(), ExitStack() as stack:
            skipped = {self._blocks[b]: self._skip(b, first, counts, token) for b in range(first)}
            stack.enter_context(self._model.replaced(skipped))
            for b in range(first, self.num_blocks):
                for handle in self._hooked(b, counts, token):
                    stack.callback(handle.remove)
            logits = self._model.run(batch, edits=edits, logits=True, grad=grad).logits
        return self._picked(logits, token, copies)

    def first_block(self, site: Site) -> int:
        """Return the first block whose computation an edit of a site changes; 0 if unknown."""
        if site.stack is None or site.stack.name:
            return 0
        if site.point in ("final_norm", "logits"):
            return self.num_blocks
        return 0 if site.layer is None else site.layer + (site.point == "resid_post")

    def meant_from(self, edit: Edit, token: int) -> bool:
        """Say whether an edit is meant for a column from `token` on, or for none at all."""
        if not edit.operation.tokenwise:
            return True
        mask_BT = edit.where.token_mask(self.context, *_tokens(self.batch).shape)
        return mask_BT is None or not mask_BT.any() or bool(mask_BT[:, token:].any())

    def _head(self, columns: Tensor) -> dict[str, Any]:
        """Return what makes the network compute the logits of some columns only, if it can."""
        if "logits_to_keep" not in inspect.signature(self._model.module.forward).parameters:
            return {}
        return {"logits_to_keep": columns}

    def _picked(self, logits: Tensor, token: int, copies: int) -> Tensor:
        """Return the logits of the asked columns; those before `token` are the base run's own."""
        asked = self.asked.repeat(copies, 1)
        columns = self._columns[self._columns >= token]
        kept = len(columns) and logits.shape[1] == len(columns)
        index = torch.searchsorted(columns, asked) if kept else asked - token
        rows = torch.arange(len(asked))[:, None]
        found = logits[rows, index.clamp(0, logits.shape[1] - 1).to(logits.device)]
        early = (asked < token).to(logits.device)
        if not early.any():
            return found
        return torch.where(early[..., None], self.logits.repeat(copies, 1, 1), found)

    def _tail(
        self, copies: int, token: int, settings: Mapping[str, Any], counts: Sequence[int]
    ) -> Batch:
        """Return the copies' inputs from `token` on, with the base run's cache of the rest."""
        tokens = _tokens(self.batch)
        kwargs = {k: v for k, v in self.batch.kwargs.items() if k != "input_ids"}
        kwargs = {k: _again(v, copies) for k, v in kwargs.items()}
        if "position_ids" in kwargs:
            kwargs["position_ids"] = kwargs["position_ids"][:, token:]
        kwargs |= cache_keywords(self._model.module, self._past(token, counts))
        kwargs |= {"use_cache": True, **settings}
        kwargs["input_ids"] = _again(tokens[:, token:], copies)
        valid = torch.ones_like(tokens).bool() if self.batch.valid is None else self.batch.valid
        past, valid = _again(valid[:, :token], copies), _again(valid[:, token:], copies)
        return Batch((), kwargs, kwargs["input_ids"], valid, past if token else None)

    def _past(self, token: int, counts: Sequence[int]) -> Any:
        """Return a cache of the tokens before `token`, in each block of the rows that run there.

        Blocks in which none run keep one row, which tells how many tokens there were.
        """
        past = copy.copy(self._cache)
        past.layers = [copy.copy(layer) for layer in self._cache.layers]
        for layer, count in zip(past.layers, counts, strict=False):
            times = max(count // len(layer.keys), 1)
            layer.keys = _again(layer.keys[:, :, :token], times)
            layer.values = _again(layer.values[:, :, :token], times)
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length = token
        return past

    def _entering(self, block: int, counts: Sequence[int], token: int) -> Tensor:
        """Return the base run's stream for copies that begin at a block, (rows, T - token, D)."""
        new = counts[block] - (counts[block - 1] if block else 0)
        x = self._values[block][:, token:]
        return x.repeat(new // len(x), 1, 1)

    def _skip(self, block: int, first: int, counts: Sequence[int], token: int) -> nn.Module:
        value = self._entering(first, counts, token) if block == first - 1 else None
        return Skip(self._model.module.get_submodule(self._blocks[block]), value, self._tuple, self)

    def _hooked(self, block: int, counts: Sequence[int], token: int) -> list[Any]:
        """Hook a block so that it computes the rows that have begun, and others join after it."""
        module = self._model.module.get_submodule(self._blocks[block])

        def shorten(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self.is_here:
                return None
            cut = partial(first_rows, total=counts[-1], rows=counts[block])
            return tuple(map(cut, args)), {k: cut(v) for k, v in kwargs.items()}

        def join(_: nn.Module, __: Any, output: Any) -> Any:
            if not self.is_here:
                return None
            x = output[0] if isinstance(output, tuple) else output
            x = torch.cat([x, self._entering(block + 1, counts, token)])
            return (x, *output[1:]) if isinstance(output, tuple) else x

        handles = []
        if counts[block] < counts[-1]:
            handles.append(module.register_forward_pre_hook(shorten, with_kwargs=True))
        if counts[block] < counts[block + 1]:
            handles.append(module.register_forward_hook(join))
        return handles


def shares(model: "Runner", batch: Batch) -> bool:
    """Say whether runs of a network can start in the middle: a decoder that keeps a cache."""
    parameters = inspect.signature(model.module.forward).parameters
    known = {"use_cache", "input_ids"} <= parameters.keys()
    known = known and cache_argument(model.module) is not None
    given = set(batch.kwargs) <= {"input_ids", "attention_mask", "position_ids"} and not batch.args
    return known and given and bool(block_paths(model))


def first_token(edit: Edit, site: Site, x: Tensor, context: ForwardContext) -> int | None:
    """Return the first column at which an edit changes the bare network's values.

    Args:
        edit: At one site.
        site: That site.
        x: What the bare network has there.
        context: Of the bare run.

    Returns:
        The column, 0 where an operation looks at other tokens too; None if nothing changes.
    """
    if not edit.operation.tokenwise:
        return 0
    rows = rows_first(x, site.axes)
    with torch.no_grad():
        new = replace(edit, operation=edit.operation.like(rows, site.axes)).write(rows, context)
    changed_T = (new != rows).flatten(2).any(-1).any(0)
    learnt = any(t.requires_grad for t in edit.operation.tensors().values())
    if learnt or new is rows:  # a gradient is asked, or the run itself must say what is wrong
        mask_BT = edit.where.token_mask(context, len(rows), rows.shape[1])
        meant = torch.ones_like(changed_T) if mask_BT is None else mask_BT.any(0)
        changed_T = meant if meant.any() else torch.ones_like(changed_T)
    columns = changed_T.nonzero()
    return int(columns[0]) if len(columns) else None


def _holds_more(layer: Any) -> bool:
    """Say whether a layer's cache holds states beside keys and values, of a whole prompt."""
    others = [v for k, v in vars(layer).items() if k not in ("keys", "values")]
    held = [v for v in others if isinstance(v, Tensor | list | tuple | dict)]
    flat = [
        x
        for v in held
        for x in (v.values() if isinstance(v, dict) else v if isinstance(v, list | tuple) else [v])
    ]
    return any(isinstance(x, Tensor) and x.dim() > 0 for x in flat)


def _tokens(batch: Batch) -> Tensor:
    if batch.tokens is None:
        raise EditError("a sweep needs token inputs, whose logits have positions")
    return batch.tokens


def _again(value: Any, times: int) -> Any:
    """Repeat a tensor's rows; what is no tensor stays."""
    if not isinstance(value, Tensor):
        return value
    return value.repeat(times, *[1] * (value.dim() - 1))
