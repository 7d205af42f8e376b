"""Concepts: what to steer towards, examples to learn it from, and questions that show it.

Shapes: N questions, V vocabulary.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from actkit import data
from actkit.core.errors import InputError
from actkit.data import Opening
from actkit.maths.next_token import log_odds
from actkit.model import Model
from actkit.steer._examples import Examples

WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Concept:
    """A concept, and how far a network's answers show it.

    Attributes:
        name: Of the concept.
        examples: With and without it, to fit methods on: as `ContrastSteerer.fit` takes them.
        questions: Held-out openings, each with words that show the concept or its opposite.
        instruction: What one would ask for in words; for the baseline that only prompts.
    """

    name: str
    examples: Any
    questions: Sequence[Opening]
    instruction: str = ""

    def __post_init__(self) -> None:
        """Refuse a task that nothing can be learnt from or measured on."""
        object.__setattr__(self, "examples", Examples.of(self.examples))
        if not self.questions:
            raise InputError("a task needs questions to measure it on, got none")

    def __str__(self) -> str:
        """Return the name."""
        return self.name

    def halves(self, seed: int) -> tuple["Concept", "Concept"]:
        """Return the task with one half of the questions, to choose settings on, and the other."""
        chosen, held = data.split(self.questions, 0.5, seed)
        return replace(self, questions=chosen), replace(self, questions=held)

    def sample(self, share: float, seed: int) -> "Concept":
        """Return the task with a share of its examples; another seed draws others."""
        return replace(self, examples=self.examples.sample(share, seed))

    @classmethod
    def from_texts(
        cls, model: Model, positive: Sequence[str], negative: Sequence[str], name: str = "texts"
    ) -> "Concept":
        """Make a task of two sets of texts; the words that tell them apart show the concept.

        Questions are neutral beginnings of sentences.

        Raises:
            InputError: A side is empty, or no word tells the sides apart.
        """
        examples = Examples.of({"positive": positive, "negative": negative})
        toward, away = telling_words(model, positive, negative)
        prompts = [opening.prompt for opening in data.openings("weddings")]
        return cls(name, examples, [Opening(prompt, toward, away) for prompt in prompts])

    @property
    def prompts(self) -> list[Any]:
        """Return the prompts of the questions."""
        return [question.prompt for question in self.questions]

    def log_odds(self, model: Model, logits_NV: Tensor) -> Tensor:
        """Return log P(toward) - log P(away) of the next token, (N,) in nats.

        A word counts by its first token; without words away, all tokens that are not toward do.
        Rows repeat the questions in their order as often as there are rows.

        Raises:
            InputError: Words of the two sides begin with the same token.
        """
        log_p_NV = logits_NV.float().log_softmax(-1)
        known = {words: _first_tokens(model, *words) for words in map(_words, self.questions)}
        sides = [known[_words(q)] for q in self.questions]
        found = []
        for row, log_p_V in enumerate(log_p_NV):
            toward, away = sides[row % len(sides)]
            found.append(log_odds(log_p_V, toward, away))
        return torch.stack(found)


Task = Concept
"""The name that it had."""
Words = tuple[tuple[str, ...], tuple[str, ...]]


def _words(question: Opening) -> Words:
    return tuple(question.toward), tuple(question.away)


def _first_tokens(
    model: Model, toward_words: Sequence[str], away_words: Sequence[str]
) -> tuple[list[int], list[int]]:
    def first(words: Sequence[str]) -> list[int]:
        return sorted({first_token(model, word) for word in words})

    toward, away = first(toward_words), first(away_words)
    if both := sorted(set(toward) & set(away)):
        raise InputError(f"words of the two sides must begin otherwise, {both} begin both")
    return toward, away


def telling_words(
    model: Model, positive: Sequence[str], negative: Sequence[str], num: int = 12
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words that tell two sets of texts apart, by their smoothed log-odds.

    A word counts once a text. Words of the two sides never begin with the same token.

    Raises:
        InputError: No word is in more texts of one side than of the other.
    """
    sides = [
        Counter(w for text in texts for w in set(WORD.findall(text.lower())))
        for texts in (positive, negative)
    ]
    plus, minus = ((n, len(texts)) for n, texts in zip(sides, (positive, negative), strict=True))

    def odds(word: str) -> float:
        return math.log((plus[0][word] + 0.5) / (plus[1] + 1)) - math.log(
            (minus[0][word] + 0.5) / (minus[1] + 1)
        )

    ordered = sorted({*plus[0], *minus[0]}, key=lambda w: (-odds(w), w))
    first = {w: first_token(model, f" {w}") for w in ordered}
    toward = [w for w in ordered if odds(w) > 0][:num]
    away = [w for w in reversed(ordered) if odds(w) < 0][:num]
    taken = {first[w] for w in toward}
    away = [w for w in away if first[w] not in taken]
    if not toward:
        raise InputError(
            f"a word must tell the texts apart, none of {len(ordered)} is in more texts of the "
            f"positive side ({len(positive)}) than of the negative ({len(negative)})"
        )
    return tuple(f" {w}" for w in toward), tuple(f" {w}" for w in away)


def first_token(model: Model, word: str) -> int:
    """Return the id of a word's first token."""
    first: int = model.tokenizer(word, add_special_tokens=False)["input_ids"][0]
    return first
