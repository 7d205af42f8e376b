"""Bundled tasks: words of one token, prompts of one length, and what SmolLM2 makes of them."""

import sys
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch

from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Task, tasks
from actkit.trace.tasks import TASKS, as_task
from tests.trace._spoken import spoken

each = pytest.mark.parametrize("name", TASKS)
SEEDED = [name for name in TASKS if name != "capitals"]
LENGTHS = {
    "ioi": 14,
    "capitals": 5,
    "greater_than": 17,
    "arithmetic": 30,
    "colored_objects": 25,
    "gendered_pronouns": 10,
    "cause_effect": 9,
    "induction": 12,
    "symbolic_paths": 27,
}
"""Tokens of SmolLM2 in each prompt."""
RIGHT = {
    "ioi": 1.0,
    "capitals": 1.0,
    "greater_than": 1.0,
    "arithmetic": 0.8,
    "colored_objects": 0.75,
    "gendered_pronouns": 1.0,
    "cause_effect": 0.9,
    "induction": 1.0,
    "symbolic_paths": 0.0,
}
"""Least share of 12 pairs that SmolLM2 gets right; it guesses in symbolic paths."""


def made(name: str, num: int = 12, **settings: Any) -> Task:
    return TASKS[name](num=num, **settings)


@each
def test_prompts_are_of_one_length_and_the_network_can_do_most(smollm2: Model, name: str) -> None:
    trial = made(name).on(smollm2)
    sys.stdout.write(trial.report)  # what it gets wrong, where a test fails
    assert trial.length == LENGTHS[name]
    assert 0 < trial.first < trial.length
    assert trial.right.float().mean() >= RIGHT[name]
    if name != "symbolic_paths":
        assert trial.able
        assert trial.clean_values.mean() > 0 > trial.corrupt_values.mean() - 1


@each
def test_all_pairs_of_a_longer_list_fit_too(smollm2: Model, name: str) -> None:
    """Lengths and single tokens need no run of the network."""
    task = made(name, 200 if name in SEEDED else 26)
    tokenizer = smollm2.tokenizer
    for side in (task.clean, task.corrupt):
        assert {len(tokenizer(text)["input_ids"]) for text in side} == {LENGTHS[name]}
    for answers in chain(task.answers or (), task.wrong or ()):
        for word in [answers] if isinstance(answers, str) else answers:
            assert len(tokenizer(word)["input_ids"]) == 1
    assert len({*zip(task.clean, task.corrupt, strict=True)}) == len(task)
    assert all(a != b for a, b in zip(task.clean, task.corrupt, strict=True))


@pytest.mark.parametrize("name", SEEDED)
def test_the_seed_decides_and_a_longer_list_begins_with_a_shorter_one(name: str) -> None:
    assert made(name, seed=3) == made(name, seed=3)
    assert made(name, seed=3) != made(name, seed=4)
    assert made(name, 30)[:12] == made(name, 12)


def test_all_words_are_single_tokens(smollm2: Model) -> None:
    words = spoken()
    assert len(words) > 200
    counts = [len(smollm2.tokenizer(f" {word}")["input_ids"]) for word in words]
    assert [w for w, n in zip(words, counts, strict=True) if n != 1] == []


def test_years_are_later_and_earlier() -> None:
    task = tasks.greater_than(50)
    for clean, corrupt, later, earlier in zip(*sides(task), strict=True):
        at = clean.index("year ") + len("year 17")
        tens = clean[at]
        assert corrupt == f"{clean[:at]}0{clean[at + 1 :]}"
        assert min(later) > tens > max(earlier)
        assert len(later) + len(earlier) == 9


def test_sums_are_right_and_one_operand_differs() -> None:
    for clean, corrupt, answer, wrong in zip(*sides(tasks.arithmetic(100)), strict=True):
        last, other = (text.splitlines()[-1].split() for text in (clean, corrupt))
        assert int(last[0]) + int(last[2]) == int(answer)
        assert int(other[0]) + int(other[2]) == int(wrong)
        assert (last[0] == other[0]) != (last[2] == other[2])


def test_colors_are_those_of_the_asked_things() -> None:
    for clean, corrupt, answer, wrong in zip(*sides(tasks.colored_objects(50)), strict=True):
        for text, color in ((clean, answer), (corrupt, wrong)):
            told, asked = text.split(". What")
            assert f"the {asked.split()[-2]} is{color}" in told.lower()


def test_the_word_that_followed_follows_again() -> None:
    for clean, corrupt, answer, wrong in zip(*sides(tasks.induction(20, length=6)), strict=True):
        for text, word in ((clean, answer), (corrupt, wrong)):
            spoken = text.split()
            assert len(spoken) == 9 and len({*spoken}) == 6
            assert spoken[spoken.index(spoken[-1]) + 1] == word.strip()


def test_induction_of_token_ids_needs_no_words() -> None:
    task = tasks.induction(7, length=4, ids=range(5, 20))
    assert isinstance(task.clean, torch.Tensor) and task.clean.shape == (7, 6)
    assert isinstance(task.corrupt, torch.Tensor)
    assert ((task.clean != task.corrupt).sum(-1) == 1).all()
    assert torch.equal(task.clean[:, 2], torch.as_tensor(task.answers))
    assert torch.equal(task.corrupt[:, 2], torch.as_tensor(task.wrong))
    assert task.clean.min() >= 5 and task.clean.max() < 20


@pytest.mark.parametrize(("depth", "branches"), [(1, 2), (2, 2), (3, 4)])
def test_the_next_node_leads_to_the_goal(depth: int, branches: int) -> None:
    task = tasks.symbolic_paths(20, depth=depth, branches=branches)
    for clean, corrupt, answer, wrong in zip(*sides(task), strict=True):
        for text, child in ((clean, answer), (corrupt, wrong)):
            edges, goal, path = (line.partition(": ")[2] for line in text.splitlines())
            next_of = [edge.split(" > ") for edge in edges.split(", ")]
            assert len(next_of) == depth * branches
            assert [path.split()[0], child.strip()] in next_of
            node = child.strip()
            for _ in range(depth - 1):
                node = dict(next_of)[node]
            assert node == goal


def sides(task: Task) -> tuple[Any, Any, Any, Any]:
    return task.clean, task.corrupt, task.answers, task.wrong


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: tasks.greater_than(0), "num must lie in 1..200, got 0"),
        (lambda: tasks.arithmetic(201), "num must lie in 1..200, got 201"),
        (lambda: tasks.induction(0), "num must lie in 1..200, got 0"),
        (lambda: tasks.induction(length=3), "even, in 2..41, got 3"),
        (lambda: tasks.induction(length=4, ids=[1, 2, 3, 4]), "even, in 2..3, got 4"),
        (lambda: tasks.symbolic_paths(depth=0), "got depth 0 and 2 branches"),
        (lambda: tasks.symbolic_paths(depth=13), "at most 25 nodes"),
        (lambda: tasks.ioi(corrupt="xyz"), "'abc' or 'swap', got 'xyz'"),
        (lambda: tasks.capitals(kind="song"), "got 'song'"),
        (lambda: tasks.induction(metric="joy"), "metric must be one of"),
        (lambda: as_task("joy"), "task must be one of ioi, capitals, greater_than"),
    ],
    ids=["zero", "many", "none", "odd", "few ids", "flat", "deep", "corrupt", "kind",
         "metric", "name"],
)  # fmt: skip
def test_bad_settings_are_refused(make: Callable[[], Task], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()


def test_a_name_stands_for_its_task() -> None:
    assert as_task("greater_than") == tasks.greater_than()
    assert as_task(task := tasks.ioi(2)) is task
