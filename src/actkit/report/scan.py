"""Scan: stream data through a network once and answer the first questions about it.

Shapes: B batch, T tokens, C channels, Y height, X width.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from actkit import data as bundled
from actkit.core.errors import ModelError
from actkit.core.model import Model
from actkit.core.provenance import stamp
from actkit.core.sites import Site
from actkit.read._base import Reading
from actkit.report.questions import QUESTIONS, Layers
from actkit.report.report import Report

LENGTH = 128
"""Tokens of one sample of text."""


def scan(model: Model, data: Any = None, num_tokens: int = 4096, batch_size: int = 8) -> Report:
    """Answer five questions about a network: how big, how sparse, which units, dimensions, sinks.

    Args:
        model: A language model, an encoder, or any network with blocks.
        data: An iterable of texts, of token blocks or of batches; bundled English prose for a
            network with a tokenizer, else the labelled photos of foolbox.
        num_tokens: How many tokens of text to use at most; images are all used.
        batch_size: Samples in one run.

    Returns:
        A report: `print()`, `to_html(path)`, `to_json(path)`.
    """
    layers = find_layers(model)
    texts = model.tokenizer is not None
    name = "bundled" if data is None else str(getattr(data, "name", type(data).__name__))
    counter = _Counted(samples(model, data, num_tokens) if texts else _pictures(data))
    wanted: dict[str, list[Reading]] = {}
    for question in QUESTIONS:
        for site in layers.of(question.layers):
            wanted.setdefault(site.name, []).append(question.reading())
    fed = model.observe(counter, wanted, batch_size)
    pages = []
    for question in QUESTIONS:
        sites = layers.of(question.layers)
        if sites:
            read = [_own(fed[s.name], question.reading()) for s in sites]
            pages.append(question.answer(sites, read, layers.decode))
    amount = f"{counter.tokens:,} tokens" if texts else f"{counter.samples:,} images"
    about = stamp(model, points=model.note, num_tokens=num_tokens, batch_size=batch_size)
    about = {"data": f"{amount} of {name} data, {counter.samples:,} samples", **about}
    return Report(f"{model.name}: what its activations do", about, tuple(pages))


def _own(fed: list[Reading], kind: Reading) -> Reading:
    return next(r for r in fed if type(r) is type(kind))


class _Counted:
    """Counts what passes by."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items, self.samples, self.tokens = items, 0, 0

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self.samples += 1
            self.tokens += len(item) if isinstance(item, list) else 0
            yield item


def samples(model: Model, data: Any, num_tokens: int) -> Iterator[Any]:
    """Yield token lists, at most `num_tokens` tokens in all.

    Text is packed into blocks of `LENGTH` tokens; an encoder's blocks get its special tokens.
    """
    texts = bundled.text() if data is None else data
    start, end = _special(model)
    blocks = bundled.chunks(texts, model.tokenizer, LENGTH - len(start) - len(end))
    left = num_tokens
    for block in blocks:
        if left <= 0:
            return
        yield [*start, *block[:left], *end]
        left -= len(block)


def _special(model: Model) -> tuple[list[int], list[int]]:
    """Return what an encoder was trained to see around a text, nothing for a decoder."""
    if bool(getattr(model.module, "can_generate", lambda: False)()):
        return [], []
    ids = (model.tokenizer.cls_token_id, model.tokenizer.sep_token_id)
    start, end = ([] if i is None else [i] for i in ids)
    return start, end


def _pictures(data: Any) -> Iterable[Any]:
    if data is not None:
        return data  # type: ignore[no-any-return]
    photos = bundled.photos()
    images = bundled.normalise(photos.images)
    return [images[i : i + 1] for i in range(len(images))]


def find_layers(model: Model) -> Layers:
    """Return the sites that the questions are asked of.

    By the points of the network's table; without a table, the outputs of the longest list of
    blocks, and inside them those of the activation functions.
    """
    sites = [s for s in model.sites() if s.stack is not None]
    if sites:
        return Layers(
            stream=_of(sites, "resid_post"),
            hidden=_of(sites, "mlp_hidden") or _of(sites, "resid_post"),
            attention=_of(sites, "attn_probs"),
            decode=None if model.tokenizer is None else model.tokenizer.decode,
        )
    lists = [
        (path, part)
        for path, part in model.module.named_modules()
        if isinstance(part, nn.ModuleList | nn.Sequential)
    ]
    if not lists:
        raise ModelError(
            f"a scan needs a network with a list of blocks, {model.name} has none; "
            "use model.observe with sites of your choice"
        )
    path, blocks = max(lists, key=lambda item: len(item[1]))
    prefix = f"{path}." if path else ""
    stream = [site for i in range(len(blocks)) for site in model.sites(f"{prefix}{i}:out")]
    inside = (n for n, m in blocks.named_modules() if type(m).__module__.endswith(".activation"))
    hidden = [site for n in inside for site in model.sites(f"{prefix}{n}:out")]
    return Layers(stream=tuple(stream), hidden=tuple(hidden or stream), attention=())


def _of(sites: list[Site], point: str) -> tuple[Site, ...]:
    return tuple(s for s in sites if point in s.name.split("."))
