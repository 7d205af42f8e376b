"""Scan: stream data through a network once and answer the first questions about it."""

from typing import Any

from actkit.core.model import Model
from actkit.core.provenance import stamp
from actkit.read._base import Reading
from actkit.report.feed import Feed
from actkit.report.layers import Layers, find_layers
from actkit.report.questions import QUESTIONS, Question
from actkit.report.report import Report
from actkit.report.words import listed

Asked = list[tuple[Question, Layers]]


def scan(model: Model, data: Any = None, num_tokens: int = 4096, batch_size: int = 8) -> Report:
    """Answer five questions about a network: how big, how sparse, which units, dimensions, sinks.

    Args:
        model: A language model, an encoder, or any network with a list of blocks.
        data: Texts, which are packed into blocks of 128 tokens; lists of tokens; 8-bit RGB
            images; or batches as `Model.run` takes them. By default bundled English prose for a
            network with a tokenizer, and the labelled photos of foolbox for one that sees.
        num_tokens: How many tokens of text to read at most; all other data are read whole.
        batch_size: Samples in one run.

    Returns:
        A report: `print()`, `to_html(path)`, `to_json(path)`.

    Raises:
        ModelError: The network has no blocks to ask about.
        InputError: There are no data, or none that the network takes.
    """
    feed = Feed(model, data, num_tokens, batch_size)
    stacks = {layers.name: layers for layers in find_layers(model)}
    reached = [stacks[name] for name in feed.reached(list(stacks))]
    asked = [(q, layers) for layers in reached for q in QUESTIONS if layers.of(q.kind)]
    read = _read(model, feed, asked, batch_size)
    decode = None if model.tokenizer is None else model.tokenizer.decode
    pages = tuple(
        question.answer(layers, read[question.key, layers.name], decode, feed.kind != "images")
        for question, layers in asked
    )
    facts = stamp(
        model, data=feed.sha256, num_tokens=num_tokens, batch_size=batch_size, points=model.note
    )
    rest = [name for name in stacks if stacks[name] not in reached]
    data_read = f"{feed}; not reached: {listed(rest)}" if rest else str(feed)
    title = f"{model.name}: what its activations do"
    return Report(title, {"data": data_read, **facts}, pages)


def _read(
    model: Model, feed: Feed, asked: Asked, batch_size: int
) -> dict[tuple[str, str], list[Reading]]:
    """Run the data through the network once; return the readings of each question and stack."""
    wanted: dict[str, list[Reading]] = {}
    places: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for question, layers in asked:
        for site in layers.of(question.kind):
            own = wanted.setdefault(site.name, [])
            places.setdefault((question.key, layers.name), []).append((site.name, len(own)))
            own.append(question.reading())
    # A list tells the progress bar how much is to come; text is short enough to be held.
    fed = model.observe(list(feed) if feed.kind == "tokens" else feed, wanted, batch_size)
    return {key: [fed[site][i] for site, i in spots] for key, spots in places.items()}
