"""Many edited runs of one input, which share work.

In a decoder each version enters the batch at the block of its first edit and at its first edited
token, and everything before comes from one run of the bare network (`base_run.py`); other networks
run the whole of each version, several versions in a batch.

Shapes: V variants, B rows of the input, P asked positions, n rows of one batch.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from actkit.core.edits.edit import Edit
from actkit.core.errors import EditError
from actkit.core.progress import track
from actkit.core.run.inputs import Batch
from actkit.core.sites.site import Site
from actkit.core.sweep.base_run import BaseRun, first_token, shares
from actkit.core.sweep.sharing import agrees

if TYPE_CHECKING:
    from actkit.core.run.runner import Runner

Metric = Callable[[Tensor], Tensor]
Sited = tuple[tuple[Edit, Site], ...]
BUDGET = "1GB"
"""Memory that the activations of one batch may take where `batch` is "auto"."""
TOKENS = 384
"""Tokens in a batch beyond which larger batches gain nothing."""
MOST_RECORDED = 64_000_000
"""Numbers of the bare run that are kept to see what edits change."""
_UNITS = {"MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Variant:
    """One version: its edits with their sites, and where it begins; block None: nowhere."""

    index: int
    edits: Sited
    block: int | None
    token: int


def sweep(
    model: "Runner",
    inputs: Any,
    variants: Sequence[Sequence[Edit]],
    metric: Metric,
    at: Any,
    batch: int | str,
    grad: bool,
) -> Tensor:
    """Return the (V, B) metric of every variant; rows of several variants share a batch."""
    base = model.encode(inputs)
    if base.tokens is None:
        raise EditError("a sweep needs token inputs, whose logits have positions")
    most = most_rows(model, base, batch)
    if not variants or most < 1:
        raise EditError(f"a sweep needs a variant and a batch, got {len(variants)} and {batch}")
    together = base.padding != "alone" and shares(model, base)
    if len(variants) > 1 and together and _may_share(model, base):
        found = _from_the_middle(model, base, variants, metric, at, most, grad)
        if found is not None:
            return found
    return _plain(model, base, variants, metric, at, most, grad)


def _from_the_middle(
    model: "Runner",
    base: Batch,
    variants: Sequence[Sequence[Edit]],
    metric: Metric,
    at: Any,
    most: int,
    grad: bool,
) -> Tensor | None:
    """Run versions that share one run; None if they cannot.

    They can if its cache holds every token, and if it was seen that sharing changes no number.
    """
    tokens = torch.as_tensor(base.tokens)
    valid = torch.ones_like(tokens).bool() if base.valid is None else base.valid
    sited = [_sited(model, v) for v in variants]
    base_run = BaseRun(model, base, positions(valid, at), _worth_recording(base, sited))
    planned = [_planned(base_run, i, v) for i, v in enumerate(sited)]
    resumes = any(v.block is not None for v in planned)
    if not base_run.whole or (resumes and at is not _TRIED and not _is_proven(model, base)):
        return None
    return _shared(base_run, planned, metric, most, grad)


def _case(model: "Runner", base: Batch) -> tuple[Any, ...]:
    """Return what may decide whether sharing changes a number."""
    config = getattr(model.module, "config", None)
    padded = base.valid is not None and not bool(base.valid.all())
    return padded, model.module.training, getattr(config, "_attn_implementation", "")


def _may_share(model: "Runner", base: Batch) -> bool:
    """Say whether sharing was not yet seen to change a number."""
    return model.shares.get(_case(model, base), True)


def _is_proven(model: "Runner", base: Batch) -> bool:
    """Say whether sharing changes no number in this network; tried once for each kind of batch."""
    case = _case(model, base)
    if case not in model.shares:
        model.shares[case] = agrees(model, case[0], _tried_shared, _tried_alone)
    return model.shares[case]


def _tried_shared(
    model: "Runner", rows: list[list[int]], versions: list[list[Edit]], metric: Metric
) -> Tensor:
    found = _from_the_middle(model, model.encode(rows), versions, metric, _TRIED, 99, False)
    if found is None:
        raise EditError("the cache does not hold every token")
    return found


def _tried_alone(
    model: "Runner", rows: list[list[int]], versions: list[list[Edit]], metric: Metric
) -> Tensor:
    base = model.encode(rows)
    every = [_plain(model, base, [v], metric, _TRIED, base.num_samples, False) for v in versions]
    return torch.cat(every)


_TRIED = slice(-4, None)
"""Where the logits of tried versions are compared: before, at and after their edits."""


def _sited(model: "Runner", edits: Sequence[Edit]) -> Sited:
    """Return the edits that would change anything, each with each of its sites."""
    own = [e for e in edits if not e.operation.neutral]
    return tuple((replace(e, site=s.name), s) for e in own for s in model.sites(e.site))


def _worth_recording(base: Batch, variants: Sequence[Sited]) -> list[Site]:
    """Return the sites of which to know what the bare network has; none if that is too much.

    Of the logits only some columns are computed, so their rows are not those of the tokens.
    """
    known = ((e, s) for v in variants for e, s in v if s.unit_shape and s.point != "logits")
    sites = {s.name: s for e, s in known if e.operation.tokenwise}
    tokens = 0 if base.tokens is None else base.tokens.numel()
    size = tokens * sum(prod(s.unit_shape or ()) for s in sites.values())
    return list(sites.values()) if size <= MOST_RECORDED else []


def _plain(
    model: "Runner",
    base: Batch,
    variants: Sequence[Sequence[Edit]],
    metric: Metric,
    at: Any,
    most: int,
    grad: bool,
) -> Tensor:
    """Run every version whole."""
    rows = base.num_samples
    at_once = max(1, most // rows)
    results = []
    for start in track(range(0, len(variants), at_once), "sweeping"):
        chunk = variants[start : start + at_once]
        edits = [replace(e, batch_rows=_block(i, rows)) for i, v in enumerate(chunk) for e in v]
        run = model.run(repeated(base, len(chunk)), edits=edits, logits=True, grad=grad)
        logits = _by_position(run.logits, at)
        asked = (
            positions(_valid(model, base, logits, rows), at).to(logits.device).repeat(len(chunk), 1)
        )
        value = metric(logits[torch.arange(len(logits), device=logits.device)[:, None], asked])
        results.append(_checked(value, len(logits)).view(len(chunk), rows))
    return torch.cat(results)


def _shared(
    base_run: BaseRun, planned: Sequence[Variant], metric: Metric, most: int, grad: bool
) -> Tensor:
    """Run of every version what comes after its first edit."""
    rows = base_run.batch.num_samples
    found: dict[int, Tensor] = {}
    if bare := [v.index for v in planned if v.block is None]:
        found = dict.fromkeys(bare, _checked(metric(base_run.logits), rows))
    groups = _grouped([v for v in planned if v.block is not None], max(1, most // rows), base_run)
    for group in track(groups, "sweeping"):
        token = min(v.token for v in group)
        edits = [
            replace(_since(e, site, token), batch_rows=_block(i, rows))
            for i, v in enumerate(group)
            for e, site in v.edits
            if base_run.meant_from(e, token)
        ]
        starts = [v.block or 0 for v in group]
        if any(site.place.layout.flat for v in group for _, site in v.edits):
            starts = [starts[0]] * len(starts)  # their rows are told apart by the batch's size
        whole = any(site.point == "logits" or not site.stack for v in group for _, site in v.edits)
        logits = base_run.resume(edits, starts, token, grad, whole_head=whole)
        values = _checked(metric(logits), len(logits)).view(len(group), rows)
        found |= dict(zip([v.index for v in group], values, strict=True))
    return torch.stack([found[i] for i in range(len(planned))])


def _planned(base_run: BaseRun, index: int, edits: Sited) -> Variant:
    """Find where a version begins: at the first block and token that it changes.

    Edits of blocks before are left out: what they meet is the bare network's, and stays.
    """
    starts = []
    for edit, site in edits:
        known = site.name in base_run.recorded
        x = base_run.recorded[site.name] if known else None
        column = first_token(edit, site, x, base_run.context) if x is not None else 0
        if column is not None:
            starts.append((base_run.first_block(site), column))
    if not starts:
        return Variant(index, edits, None, 0)
    block = min(b for b, _ in starts)
    kept = tuple((e, s) for e, s in edits if base_run.first_block(s) >= block)
    return Variant(index, kept, block, min(c for _, c in starts))


def _grouped(variants: list[Variant], at_once: int, base_run: BaseRun) -> list[list[Variant]]:
    """Put versions that begin at near tokens into one batch, in the order of their blocks."""
    tokens = base_run.batch.tokens
    assert tokens is not None
    rows, length = tokens.shape
    groups: list[list[Variant]] = []
    for v in sorted(variants, key=lambda v: (v.token, v.block or 0, v.index)):
        own = groups[-1] if groups else []
        size = len(own) * rows * (length - own[0].token) if own else 0
        beside = own and (v.token == own[0].token or size < TOKENS)
        if beside and len(own) < at_once:
            own.append(v)
        else:
            groups.append([v])
    return [sorted(g, key=lambda v: (v.block or 0, v.index)) for g in groups]


def _since(edit: Edit, site: Site, token: int) -> Edit:
    """Return an edit of one site as a run that begins at a later token sees it."""
    edit = replace(edit, site=site.name)
    if not token:
        return edit
    return replace(
        edit, operation=edit.operation.since(token, site.axes), where=edit.where.since(token)
    )


def most_rows(model: "Runner", base: Batch, batch: int | str) -> int:
    """Return how many rows may run at once.

    Args:
        model: The network.
        base: The inputs.
        batch: A number of rows; "auto"; or a budget such as "500MB" or "4GB".
    """
    if isinstance(batch, int):
        return batch
    size = re.fullmatch(r"(\d+) ?(MB|GB)", BUDGET if batch == "auto" else batch)
    if size is None:
        raise EditError(
            f"batch must be a number of rows, 'auto', or memory as '500MB', got {batch!r}"
        )
    tokens = base.tokens if base.tokens is not None else torch.zeros(1, 1)
    each = row_bytes(model, int(tokens.shape[1]))
    return max(len(tokens), int(size[1]) * _UNITS[size[2]] // each)


def row_bytes(model: "Runner", length: int) -> int:
    """Estimate the memory of one row's activations, caches and logits in a run."""
    weights = list(model.module.parameters())
    item = weights[0].element_size() if weights else 4
    stack = next((s.stack for s in model.sites() if s.stack is not None), None)
    if stack is None:  # every map's outputs at once
        return max(1, item * length * sum(w.shape[0] for w in weights if w.dim() > 1))
    cache = 2 * stack.num_blocks * stack.kv_heads * stack.head_width
    inside = 8 * stack.width + 4 * stack.hidden + 2 * stack.heads * length
    return max(1, item * (length * (2 * cache + inside) + 4 * stack.vocabulary))


def _block(index: int, rows: int) -> slice:
    return slice(index * rows, (index + 1) * rows)


def repeated(batch: Batch, times: int) -> Batch:
    """Return a batch again and again, copy-major."""

    def repeat(value: Any) -> Any:
        return torch.cat([value] * times) if isinstance(value, Tensor) else value

    return replace(
        batch,
        args=tuple(map(repeat, batch.args)),
        kwargs={k: repeat(v) for k, v in batch.kwargs.items()},
        tokens=repeat(batch.tokens),
        valid=repeat(batch.valid),
        past=repeat(batch.past),
    )


def _by_position(logits: Tensor, at: Any) -> Tensor:
    """Return logits (n, P, vocabulary); a classifier's stand at one position, the last."""
    if logits.dim() == 2 and at == "last":
        return logits[:, None]
    if logits.dim() != 3:
        raise EditError(
            f"logits of shape {tuple(logits.shape)} have no positions: leave at='last', got {at!r}"
        )
    return logits


def _valid(model: "Runner", base: Batch, logits: Tensor, rows: int) -> Tensor:
    """Return which of each row's logits are of no padding; a decoder's own are all."""
    answers = getattr(getattr(model.module, "config", None), "is_encoder_decoder", False)
    if answers and isinstance(mask := base.kwargs.get("decoder_attention_mask"), Tensor):
        return mask.bool()
    if answers or base.valid is None or base.valid.shape[1] != logits.shape[1]:
        return torch.ones(rows, logits.shape[1], dtype=torch.bool)
    return base.valid


def positions(valid: Tensor, at: Any) -> Tensor:
    """Return the (B, P) indices of the asked positions; they count a row's valid tokens."""
    if not (at == "last" or isinstance(at, int | slice)):
        raise EditError(f"positions must be 'last', an index or a slice, got {at!r}")
    at = slice(-1, None) if at == "last" else at
    chosen = []
    for row in valid:
        index = row.nonzero()[:, 0].cpu()
        if isinstance(at, int) and not -len(index) <= at < len(index):
            raise EditError(f"a position must be below {len(index)} in every row, got {at}")
        chosen.append(index[at].reshape(-1))
    if not len(chosen[0]) or len({len(c) for c in chosen}) > 1:
        raise EditError(
            f"positions must be as many in every row and not none, got {[len(c) for c in chosen]} "
            f"for {at}"
        )
    return torch.stack(chosen)


def _checked(value: Any, rows: int) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != (rows,):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise EditError(f"a metric must return a tensor of shape ({rows},), got {got}")
    return value
