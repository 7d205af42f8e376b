"""Scan: stream data through a network once and answer the first questions about it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from actkit.core.engines.engine import check_engine
from actkit.core.errors import InputError, ModelError, SiteError
from actkit.core.provenance import stamp
from actkit.core.run.token_labels import token_label
from actkit.model import Model
from actkit.opening.untrained import untrained
from actkit.scanning.answer import Page
from actkit.scanning.feed import Feed
from actkit.scanning.format import listed
from actkit.scanning.layers import Layers, find_layers
from actkit.scanning.questions import QUESTIONS
from actkit.scanning.questions._base import CONTROL, Question, Seen
from actkit.scanning.reference import LANGUAGE, kind_of, usual
from actkit.scanning.report import Report

BATCH = 8
"""Samples in one run, if nothing else is asked."""


def scan(
    model: Model,
    data: Any = None,
    num_tokens: int = 4096,
    *,
    against: Model | None = None,
    control: bool = True,
    questions: Iterable[str] | None = None,
    **settings: Any,
) -> Report:
    """Answer the first questions about a network: how big, how sparse, which units, and so on.

    Args:
        model: A language model, an encoder, or any network with a list of blocks.
        data: Texts, which are packed into blocks of 128 tokens; lists of tokens; 8-bit RGB
            images; or batches as `Model.run` takes them. By default bundled English prose for a
            network with a tokenizer, and the labelled photos of foolbox for one that sees.
        num_tokens: How many tokens of text to read at most; all other data are read whole.
        against: Another network or checkpoint to show beside this one, on the same data.
        control: Also scan an untrained copy of the network, which doubles time and memory. Where
            none can be made the report says why.
        questions: Which to ask, by key ("size", "spectrum"); all if None.
        settings: Of `Model.observe`: batch_size, and engine to scan on Ray, for which the data
            are held in memory.

    Returns:
        A report: `print()`, `to_html(path)`, `to_json(path)`.

    Raises:
        ModelError: The network has no blocks to ask about.
        InputError: There are no data, or none that the network takes; an unknown question.
    """
    questions = None if questions is None else list(questions)
    check_scan(questions, settings.get("engine", "local"))
    asked = _asked(questions)
    once = isinstance(data, Iterator)
    if against is not None and once:
        raise InputError("to scan two networks data must be readable twice, got an iterator")

    def subject(network: Model, wanted: Sequence[Question]) -> _Subject:
        return _Subject(network, data, num_tokens, wanted, settings)

    main = subject(model, asked)
    subjects = {model.name: main}
    fresh, missing = _control(model, once) if control else (None, "not asked for")
    if fresh is not None:
        subjects[CONTROL] = subject(fresh, [q for q in asked if q.control])
    if against is not None:
        name = against.name if against.name not in subjects else f"{against.name} (against)"
        subjects[name] = subject(against, asked)
    how = {"num_tokens": num_tokens, "batch_size": settings.get("batch_size", BATCH)}
    facts = stamp(model, data=main.feed.sha256, **how, points=model.note)
    kind = kind_of(model)
    pages = tuple(
        _page(q, stack, subjects, usual(kind, q.key, facts["weights"]))
        for stack, read in main.read.items()
        for q in asked
        if q.key in read
    )
    about = {"data": main.data_read(), **facts, **_others(missing, against)}
    return Report(_title(model, against), about, pages)


def _title(model: Model, against: Model | None) -> str:
    versus = "" if against is None else f" and those of {against.name}"
    return f"{model.name}: what its activations do{versus}"


def _others(missing: str, against: Model | None) -> dict[str, Any]:
    """Return what is known of the networks beside the scanned one."""
    found: dict[str, Any] = {}
    if missing:
        found["control"] = missing
    if against is not None:
        found["against"] = stamp(against)
    return found


def check_scan(questions: Iterable[str] | None, engine: Any = "local") -> None:
    """Refuse questions and an engine that do not exist, before a network is opened.

    Raises:
        InputError: A question is unknown, or there is none.
        EngineError: The engine is unknown, or Ray is not installed.
    """
    _asked(questions)
    check_engine(engine)


def _asked(keys: Iterable[str] | None) -> list[Question]:
    known = {q.key: q for q in QUESTIONS}
    chosen = list(known if keys is None else keys)
    if not chosen or (wrong := [k for k in chosen if k not in known]):
        got = ", ".join(wrong) if chosen else "none"
        raise InputError(f"questions are {', '.join(known)}, got {got}")
    return [q for q in QUESTIONS if q.key in chosen]


class _Subject:
    """One network, read once.

    Attributes:
        feed: What it was fed.
        read: What was seen, by the stack's name and the question's key.
    """

    def __init__(
        self,
        model: Model,
        data: Any,
        num_tokens: int,
        asked: Sequence[Question],
        settings: Mapping[str, Any],
    ) -> None:
        """Run the data through the network, then measure what is not read on the way."""
        self._model = model
        self.feed = Feed(model, data, num_tokens, settings.get("batch_size", BATCH))
        stacks = {layers.name: layers for layers in find_layers(model)}
        reached = self.feed.reached(list(stacks))
        self._rest = [name for name in stacks if name not in reached]
        # A list tells the progress bar how much is to come; text is short enough to be held.
        held = self.feed.kind == "tokens" or settings.get("engine", "local") != "local"
        given = list(self.feed) if held else self.feed
        pairs = [(q, stacks[n]) for n in reached for q in asked if stacks[n].of(q.kind)]
        self.read: dict[str, dict[str, Seen]] = {name: {} for name in reached}
        self._stream([(q, layers) for q, layers in pairs if q.measure is None], given, settings)
        if isinstance(given, list) and kind_of(model) == LANGUAGE:
            self._measure([(q, layers) for q, layers in pairs if q.measure is not None], given)

    def _stream(
        self,
        pairs: Sequence[tuple[Question, Layers]],
        given: Iterable[Any],
        settings: Mapping[str, Any],
    ) -> None:
        """Read on the way, all questions in one pass."""
        model, (wanted, places) = self._model, _wanted(pairs)
        fed = model.observe(given, wanted, **settings) if wanted else {}
        decode = None if model.tokenizer is None else partial(token_label, model.tokenizer)
        for question, layers in pairs:
            results = [fed[key][i].result() for key, i in places[question.key, layers.name]]
            seen = Seen(layers, question.kind, results, decode)
            self.read[layers.name][question.key] = seen

    def _measure(self, pairs: Sequence[tuple[Question, Layers]], samples: list[Any]) -> None:
        """Measure what is not read on the way; a refusal is told on the page."""
        for question, layers in pairs:
            measure: Any = question.measure
            try:
                seen = Seen(layers, question.kind, measure(self._model, samples))
            except (InputError, SiteError) as error:
                seen = Seen(layers, question.kind, [], reason=str(error))
            self.read[layers.name][question.key] = seen

    def data_read(self) -> str:
        """Return what was read, in words."""
        rest = f"; not reached: {listed(self._rest)}" if self._rest else ""
        return f"{self.feed}{rest}"

    @property
    def texts(self) -> bool:
        """Return whether texts were read."""
        return self.feed.kind != "images"


def unread(model: Model) -> dict[str, dict[Any, list[Any]]]:
    """Return for each question the empty readings of a scan by site, as `observe` takes them."""
    streamed = [q for q in QUESTIONS if q.measure is None]
    asked = ((q, layers) for layers in find_layers(model) for q in streamed)
    return {q.key: _wanted([(q, layers)])[0] for q, layers in asked if layers.of(q.kind)}


Spots = dict[tuple[str, str], list[tuple[Any, int]]]


def _wanted(asked: Iterable[tuple[Question, Layers]]) -> tuple[dict[Any, list[Any]], Spots]:
    """Return empty readings by site, and where each question finds its own among them."""
    wanted: dict[Any, list[Any]] = {}
    places: Spots = {}
    for question, layers in asked:
        make: Any = question.reading
        for key in layers.keys(question.kind):
            own = wanted.setdefault(key, [])
            places.setdefault((question.key, layers.name), []).append((key, len(own)))
            own.append(make())
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


def _control(model: Model, once: bool) -> tuple[Model | None, str]:
    """Return the untrained copy, or None and the reason."""
    if once:
        return None, "no untrained copy was scanned: the data can be read only once"
    try:
        return untrained(model), ""
    except ModelError as error:
        return None, f"no untrained copy was scanned: {error}"
