"""Tasks: bundled ones, those of two sets of texts, and how far answers show the concept."""

from typing import Any

import pytest
import torch

import actkit as ak
from actkit.core.errors import InputError
from actkit.data import Contrast, Opening
from actkit.model import Model
from actkit.steer._concept import Concept, telling_words
from actkit.steer._examples import Examples
from actkit.steer.tasks import TASKS, as_task
from tests.core import tiny

QUESTIONS = [Opening("w1 w2", ("w3", "w4"), ("w5",)), Opening("w7", ("w8",), ("w9", "w10"))]
TASK = Concept("toy", [("w1", "w2"), ("w3", "w4"), ("w5", "w6"), ("w7", "w8")], QUESTIONS)


def test_log_odds_by_hand() -> None:
    model = tiny.model()
    logits = tiny.uneven(4, tiny.WORDS, seed=3)
    p = logits.double().softmax(-1)
    expected = [
        (p[0, 3] + p[0, 4]).log() - p[0, 5].log(),
        p[1, 8].log() - (p[1, 9] + p[1, 10]).log(),
        (p[2, 3] + p[2, 4]).log() - p[2, 5].log(),
        p[3, 8].log() - (p[3, 9] + p[3, 10]).log(),
    ]
    found = TASK.log_odds(model, logits).double()
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_without_words_away_all_others_count() -> None:
    model = tiny.model()
    task = Concept("toy", [("w1", "w2")], [Opening("w1", ("w3", "w4"))])
    logits = tiny.uneven(1, tiny.WORDS)
    p = logits.double().softmax(-1)[0, 3:5].sum()
    found = task.log_odds(model, logits)[0].double()
    torch.testing.assert_close(found, p.log() - (1 - p).log(), rtol=1e-5, atol=1e-6)


def test_words_that_begin_alike_are_refused() -> None:
    task = Concept("toy", [("w1", "w2")], [Opening("w1", ("w3",), ("w3",))])
    with pytest.raises(InputError, match="begin otherwise"):
        task.log_odds(tiny.model(), tiny.uneven(1, tiny.WORDS))


def test_halves_share_no_question_and_samples_are_shares() -> None:
    task = as_task("sentiment")
    one, other = task.halves(0)
    assert not set(one.prompts) & set(other.prompts)
    assert set(one.prompts) | set(other.prompts) == set(task.prompts)
    assert set(task.halves(1)[0].prompts) != set(one.prompts)
    fewer = task.sample(0.75, seed=0).examples
    assert len(fewer.positive) == 81
    pairs = set(zip(task.examples.positive, task.examples.negative, strict=True))
    assert set(zip(fewer.positive, fewer.negative, strict=True)) <= pairs
    assert task.sample(0.75, seed=1).examples.positive != fewer.positive


def test_unequal_sides_are_sampled_each() -> None:
    examples = Examples.of({"positive": list("abcdefgh"), "negative": list("wxyz")})
    fewer = examples.sample(0.5, seed=0)
    assert (len(fewer.positive), len(fewer.negative)) == (4, 2)


@pytest.mark.parametrize("name", TASKS)
def test_bundled_tasks(name: str, smollm2: Model) -> None:
    """Every word begins with another token than the other side's; questions are held out."""
    task = as_task(name)
    assert str(task) == name
    assert task.instruction
    assert len(task.questions) >= 12
    assert len(task.examples.positive) == len(task.examples.negative) >= 24
    seen = {*task.examples.positive, *task.examples.negative}
    assert not seen & set(task.prompts)
    logits = torch.zeros(len(task.questions), 49152)
    assert task.log_odds(smollm2, logits).isfinite().all()


def test_facts_are_asked_of_other_countries() -> None:
    task = as_task("truth")
    fitted = {text.split(" is ")[0] for text in task.examples.positive}
    assert not fitted & {str(p).split(" is")[0] for p in task.prompts}


def test_words_that_tell_texts_apart(smollm2: Model) -> None:
    ships = ["The ship left the harbour", "A ship at sea", "The sea was calm and the ship slow"]
    trains = ["The train left the station", "A train on rails", "The rails were wet"]
    toward, away = telling_words(smollm2, ships, trains, num=2)
    assert toward == (" ship", " sea")
    assert away == (" train", " rails")
    task = Concept.from_texts(smollm2, ships, trains[:2], "ships")
    assert task.questions[0].toward[0] == " ship"
    assert len(task.examples.negative) == 2


BAD: dict[str, Any] = {
    "no questions": lambda: Concept("x", [("a", "b")], []),
    "no examples": lambda: Concept("x", [], QUESTIONS),
    "one-sided": lambda: Concept("x", {"positive": ["a"], "negative": []}, QUESTIONS),
    "unknown": lambda: as_task("joy"),
    "same texts": lambda: Concept.from_texts(tiny.model(), ["a b"], ["b a"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tasks_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        BAD[name]()


def test_openings_and_pairs_of_the_package() -> None:
    for pairs, num in ((ak.data.formality(), 40), (ak.data.weddings(), 30)):
        assert len(pairs) == num
        assert all(isinstance(p, Contrast) and p.positive != p.negative for p in pairs)
    with pytest.raises(ak.errors.DataError, match="got 'joy'"):
        ak.data.openings("joy")
