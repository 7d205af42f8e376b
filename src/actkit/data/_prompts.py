"""Prompt sets written for actkit: indirect objects, capitals, pairs that differ in a concept."""

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from actkit.core.errors import DataError

T = TypeVar("T")
FILES = Path(__file__).parent / "files"
MOST = 100_000
"""Most prompts that `ioi` writes; below that it never runs short of different ones."""

CAPITAL = {
    "statement": "The capital of {country} is",
    "city": "The capital city of {country} is called",
    "parliament": "The parliament of {country} meets in its capital,",
    "visit": "Last year we flew to {country} and spent a week in its capital,",
}


@dataclass(frozen=True, slots=True)
class Cloze:
    """A prompt, its counterfactual, and the two next words that tell them apart.

    Attributes:
        clean: The prompt, which `answer` continues.
        corrupt: The counterfactual, of as many tokens in SmolLM2, in the same places.
        answer: The right next word, with its space in front.
        wrong: The word to compare with, with its space in front.
        subject: Whom or what the prompt is about, as it stands in `clean`.
        kind: The order of names, or the name of the template.
    """

    clean: str
    corrupt: str
    answer: str
    wrong: str
    subject: str
    kind: str


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two sentences that differ in one concept: `positive` has it, `negative` has not."""

    positive: str
    negative: str


@dataclass(frozen=True, slots=True)
class Opening:
    """A beginning, and the next words that tell whether a concept follows.

    Attributes:
        prompt: The beginning: a text or a chat.
        toward: Next words that show the concept, with their space in front.
        away: Next words that show its opposite; none stands for all other words.
    """

    prompt: Any
    toward: tuple[str, ...]
    away: tuple[str, ...] = ()


def ioi(num: int = 100, seed: int = 0, template: int | None = None) -> list[Cloze]:
    """Write prompts that end where the indirect object follows, all different.

    Of the kinds, `ABBA` names the indirect object first and `BABA` the subject; they take turns.
    `subject` is the name that occurs twice, and also `wrong`. In `corrupt` three other names
    stand in the three places, so neither answer is favoured. Every name, place and item is one
    token of SmolLM2.

    Args:
        num: How many prompts, in 1..100,000.
        seed: The same seed gives the same prompts, and a longer list begins with a shorter one.
        template: The one sentence of eight to use, whose prompts are all of one length.

    Raises:
        DataError: `num` or `template` is out of its bounds.

    Example:
        >>> row = ioi(1)[0]
        >>> row.clean.count(row.wrong), row.clean.count(row.answer)
        (2, 1)
    """
    if not 1 <= num <= MOST:
        raise DataError(f"num must lie in 1..{MOST}, got {num}")
    rng, words = Random(seed), _read("ioi")
    if template is not None:
        if not 0 <= template < len(words["templates"]):
            known = len(words["templates"]) - 1
            raise DataError(f"template must lie in 0..{known}, got {template}")
        words = {**words, "templates": [words["templates"][template]]}
    rows: dict[str, Cloze] = {}
    while len(rows) < num:
        row = _indirect(rng, words, "BABA" if len(rows) % 2 else "ABBA")
        rows.setdefault(row.clean, row)
    return list(rows.values())


def _indirect(rng: Random, words: dict[str, list[str]], kind: str) -> Cloze:
    template = rng.choice(words["templates"])
    around = {"place": rng.choice(words["places"]), "item": rng.choice(words["items"])}
    answer, subject, *others = rng.sample(words["names"], 5)
    a, b = (answer, subject) if kind == "ABBA" else (subject, answer)
    return Cloze(
        clean=template.format(a=a, b=b, s=subject, **around),
        corrupt=template.format(a=others[0], b=others[1], s=others[2], **around),
        answer=f" {answer}",
        wrong=f" {subject}",
        subject=subject,
        kind=kind,
    )


def capitals() -> list[Cloze]:
    """Return country and capital facts: every country in each of four templates.

    Countries come in pairs of equally many tokens in SmolLM2; each is the other's `corrupt`,
    and the other's capital is `wrong`. `subject` is the country, `kind` the template, so
    `split(capitals(), by=lambda row: row.subject)` tests on countries that training never saw.

    Example:
        >>> next(c for c in capitals() if c.subject == "France").answer
        ' Paris'
    """
    facts = _read("capitals")
    pairs = [(fact, facts[i ^ 1]) for i, fact in enumerate(facts)]  # i ^ 1: 0-1, 2-3, 4-5, ...
    return [
        Cloze(
            clean=template.format(country=country),
            corrupt=template.format(country=other),
            answer=f" {capital}",
            wrong=f" {other_capital}",
            subject=country,
            kind=kind,
        )
        for kind, template in CAPITAL.items()
        for (country, capital), (other, other_capital) in pairs
    ]


def sentiment() -> list[Contrast]:
    """Return 108 pairs of sentences that praise (`positive`) and blame (`negative`) one thing."""
    return [Contrast(*pair) for pair in _read("sentiment")]


def refusal() -> list[Contrast]:
    """Return 72 pairs of requests: one to refuse (`positive`) and a harmless one of its form.

    The harmful ones only name what is asked for and carry no detail that would help.
    """
    return [Contrast(*pair) for pair in _read("refusal")]


def formality() -> list[Contrast]:
    """Return 40 pairs of sentences that say one thing formally (`positive`) and casually."""
    return [Contrast(*pair) for pair in _read("formality")]


def weddings() -> list[Contrast]:
    """Return 30 pairs of sentences: one on a wedding (`positive`), one of its form on another."""
    return [Contrast(*pair) for pair in _read("weddings")]


def openings(topic: str) -> list[Opening]:
    """Return 24 beginnings of sentences that leave open whether a concept will follow.

    Args:
        topic: "sentiment", "formality" or "weddings".

    Raises:
        DataError: There are none for the topic.

    Example:
        >>> openings("sentiment")[0].prompt
        'The film was'
    """
    known = _read("openings")
    if topic not in known:
        raise DataError(f"openings are there for {', '.join(known)}, got {topic!r}")
    own = known[topic]
    words = tuple(own["toward"]), tuple(own["away"])
    return [Opening(prompt, *words) for prompt in own["prompts"]]


def split(
    items: Sequence[T],
    test: float = 0.25,
    seed: int = 0,
    by: Callable[[T], Hashable] | None = None,
) -> tuple[list[T], list[T]]:
    """Divide items at random into (train, test), each in the order of `items`.

    Args:
        items: Any rows.
        test: Share of the groups that go to test, in (0, 1), rounded to the nearest number.
        seed: The same seed gives the same division.
        by: Gives the group of an item; a group is never divided. None: each item is its own.

    Raises:
        DataError: `test` is out of its bounds, or a side would be empty.

    Example:
        >>> split(["a", "b", "c", "d"], test=0.5, seed=1)
        (['a', 'd'], ['b', 'c'])
    """
    if not 0 < test < 1:
        raise DataError(f"test must be a share in (0, 1), got {test}")
    groups = list(range(len(items))) if by is None else [by(item) for item in items]
    order = list(dict.fromkeys(groups))
    num_test = round(test * len(order))
    if not 0 < num_test < len(order):
        raise DataError(f"both sides must get a group, got {num_test} of {len(order)} for test")
    held = set(Random(seed).sample(order, num_test))
    train = [item for item, group in zip(items, groups, strict=True) if group not in held]
    return train, [item for item, group in zip(items, groups, strict=True) if group in held]


def _read(name: str) -> Any:
    return json.loads((FILES / f"{name}.json").read_text(encoding="utf-8"))
