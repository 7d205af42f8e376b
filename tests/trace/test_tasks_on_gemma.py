"""The bundled tasks with Gemma-3-270M's tokenizer, and what it makes of them."""

from itertools import chain

import pytest

from actkit.model import Model
from tests.trace._spoken import spoken
from tests.trace.test_tasks import RIGHT, SEEDED, each, made

LENGTHS = {
    "ioi": 15,
    "capitals": 6,
    "greater_than": 18,
    "arithmetic": 31,
    "colored_objects": 26,
    "gendered_pronouns": 12,
    "cause_effect": 10,
    "induction": 13,
    "symbolic_paths": 27,
}
"""Tokens of Gemma in each prompt, <bos> included."""
FEWER = {"cause_effect": 10 / 12}
"""Where Gemma gets fewer of 12 pairs right than SmolLM2 must: .83 for .9."""


@pytest.mark.slow
@each
def test_the_network_can_do_most(gemma: Model, name: str) -> None:
    """Does not hold on Gemma: .9 of causes and effects (here .83)."""
    trial = made(name).on(gemma)
    assert 0 < trial.first < trial.length == LENGTHS[name]
    assert trial.right.float().mean() >= FEWER.get(name, RIGHT[name]) - 1e-6
    if name != "symbolic_paths":
        assert trial.able
        assert trial.clean_values.mean() > 0 > trial.corrupt_values.mean() - 1


@each
def test_all_pairs_of_a_longer_list_fit_too(gemma: Model, name: str) -> None:
    task = made(name, 200 if name in SEEDED else 26)
    tokenizer = gemma.tokenizer
    for side in (task.clean, task.corrupt):
        assert {len(tokenizer(text)["input_ids"]) for text in side} == {LENGTHS[name]}
    for answers in chain(task.answers or (), task.wrong or ()):
        for word in [answers] if isinstance(answers, str) else answers:
            assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1


def test_all_words_are_single_tokens(gemma: Model) -> None:
    words = spoken()
    ids = [gemma.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    assert [w for w, own in zip(words, ids, strict=True) if len(own) != 1] == []
