"""Scan: stream data through a network once and answer the first questions about it."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from actkit.core.errors import InputError, ModelError
from actkit.core.model import Model
from actkit.core.provenance import stamp
from actkit.core.untrained import untrained
from actkit.report.asked import QUESTIONS
from actkit.report.feed import Feed
from actkit.report.layers import Layers, find_layers
from actkit.report.questions import Question, Seen
from actkit.report.report import Page, Report
from actkit.report.usual import kind_of, usual
from actkit.report.words import listed

CONTROL = "untrained"


def scan(
    model: Model,
    data: Any = None,
    num_tokens: int = 4096,
    batch_size: int = 8,
    against: Model | None = None,
    control: bool = True,
) -> Report:
    """Answer the first questions about a network: how big, how sparse, which units, and so on.

    Args:
        model: A language model, an encoder, or any network with a list of blocks.
        data: Texts, which are packed into blocks of 128 tokens; lists of tokens; 8-bit RGB
            images; or batches as `Model.run` takes them. By default bundled English prose for a
            network with a tokenizer, and the labelled photos of foolbox for one that sees.
        num_tokens: How many tokens of text to read at most; all other data are read whole.
        batch_size: Samples in one run.
        against: Another network or checkpoint to show beside this one, on the same data.
        control: Also scan an untrained copy of the network, which doubles time and memory. Where
            none can be made the report says why.

    Returns:
        A report: `print()`, `to_html(path)`, `to_json(path)`.

    Raises:
        ModelError: The network has no blocks to ask about.
        InputError: There are no data, or none that the network takes.
    """
    feed = Feed(model, data, num_tokens, batch_size)
    once = isinstance(data, Iterator)
    if against is not None and once:
        raise InputError("to scan two networks data must be readable twice, got an iterator")
    main = _Subject(model, feed, batch_size)
    beside, missing = _control(model, once) if control else ({}, "not asked for")
    subjects = {model.name: main}
    for name, other in beside.items():
        subjects[name] = _Subject(other, Feed(other, data, num_tokens, batch_size), batch_size)
    if against is not None:
        name = against.name if against.name != model.name else f"{against.name} (against)"
        subjects[name] = _Subject(against, Feed(against, data, num_tokens, batch_size), batch_size)
    facts = stamp(
        model, data=feed.sha256, num_tokens=num_tokens, batch_size=batch_size, points=model.note
    )
    kind = kind_of(model)
    pages = tuple(
        _page(question, stack, subjects, usual(kind, question.key, facts["weights"]))
        for stack in main.read
        for question in QUESTIONS
        if question.key in main.read[stack]
    )
    about = {"data": main.data_read(), **facts}
    if missing:
        about["control"] = missing
    if against is not None:
        about["against"] = stamp(against)
    versus = f" and those of {against.name}" if against is not None else ""
    return Report(f"{model.name}: what its activations do{versus}", about, pages)


class _Subject:
    """One network, read once.

    Attributes:
        model: The network.
        read: What was seen, by the stack's name and the question's key.
    """

    def __init__(self, model: Model, feed: Feed, batch_size: int) -> None:
        """Run the data through the network."""
        self.model, self._feed = model, feed
        stacks = {layers.name: layers for layers in find_layers(model)}
        reached = feed.reached(list(stacks))
        self._rest = [name for name in stacks if name not in reached]
        asked = [(q, stacks[name]) for name in reached for q in QUESTIONS]
        self.read: dict[str, dict[str, Seen]] = {}
        wanted, places = _wanted([(q, layers) for q, layers in asked if layers.of(q.kind)])
        # A list tells the progress bar how much is to come; text is short enough to be held.
        given = list(feed) if feed.kind == "tokens" else feed
        fed = model.observe(given, wanted, batch_size)
        decode = None if model.tokenizer is None else model.tokenizer.decode
        for question, layers, spots in places:
            results = [fed[key][i].result() for key, i in spots]
            seen = Seen(layers, question.kind, results, decode)
            self.read.setdefault(layers.name, {})[question.key] = seen

    def data_read(self) -> str:
        """Return what was read, in words."""
        rest = f"; not reached: {listed(self._rest)}" if self._rest else ""
        return f"{self._feed}{rest}"

    @property
    def texts(self) -> bool:
        """Return whether texts were read."""
        return self._feed.kind != "images"


Spot = tuple[Any, int]


def _wanted(
    asked: Iterable[tuple[Question, Layers]],
) -> tuple[dict[Any, list[Any]], list[tuple[Question, Layers, list[Spot]]]]:
    """Return empty readings by site, and where each question finds its own among them."""
    wanted: dict[Any, list[Any]] = {}
    places = []
    for question, layers in asked:
        spots = []
        for key in layers.keys(question.kind):
            own = wanted.setdefault(key, [])
            spots.append((key, len(own)))
            own.append(question.reading())
        places.append((question, layers, spots))
    return wanted, places


def _page(
    question: Question, stack: str, subjects: Mapping[str, _Subject], usually: Mapping[str, float]
) -> Page:
    main = next(iter(subjects.values()))
    seen = {}
    for name, subject in subjects.items():
        own = subject.read.get(stack) or next(iter(subject.read.values()))
        if question.key in own:
            seen[name] = own[question.key]
    return question.answer(seen, usually, main.texts)


def _control(model: Model, once: bool) -> tuple[dict[str, Model], str]:
    """Return the untrained copy by its name, or none and the reason."""
    if once:
        return {}, "no untrained copy was scanned: the data can be read only once"
    try:
        return {CONTROL: untrained(model)}, ""
    except ModelError as error:
        return {}, f"no untrained copy was scanned: {error}"
