"""Every localizer of the catalog that needs no settings."""

import inspect
from typing import Any

import pytest
import torch

import actkit as ak
from actkit.catalog import Entry, methods
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Localizer, Scores, Task, TaskWarning
from actkit.worlds.toy_transformer import reader
from tests.core import tiny
from tests.core.tiny import untouched


def needs_no_settings(entry: Entry) -> bool:
    made = entry.load()
    if not (isinstance(made, type) and issubclass(made, Localizer)):
        return False
    settings = inspect.signature(made).parameters.values()
    return all(s.default is not inspect.Parameter.empty for s in settings)


LOCALIZERS = [e for e in methods("trace") if needs_no_settings(e)]
each = pytest.mark.parametrize("entry", LOCALIZERS, ids=lambda e: e.name)
CLEAN = ["w1 w2 w3 w4 w5", "w6 w2 w3 w4 w7", "w8 w2 w9 w4 w5"]
CORRUPT = ["w1 w12 w3 w4 w5", "w6 w13 w3 w4 w7", "w8 w14 w9 w4 w5"]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def task(model: Model) -> Task:
    """What the random network itself prefers for the clean prompts over the corrupt ones."""
    sides = [model.run(s, logits=True).logits[:, -1] for s in (CLEAN, CORRUPT)]
    answers = (sides[0] - sides[1]).argmax(-1)
    wrong = (sides[1] - sides[0]).argmax(-1)
    better = sides[0].gather(1, answers[:, None]) - sides[0].gather(1, wrong[:, None])
    shifted = [[int(a), int(w)] if g > 0 else [int(w), int(a)]
               for a, w, g in zip(answers, wrong, better, strict=True)]  # fmt: skip
    flipped = [c if g > 0 else d for c, d, g in zip(CLEAN, CORRUPT, better, strict=True)]
    others = [d if g > 0 else c for c, d, g in zip(CLEAN, CORRUPT, better, strict=True)]
    return Task(flipped, others, [a for a, _ in shifted], [w for _, w in shifted], name="tiny")


def scored(entry: Entry, model: Model, task: Any) -> Scores:
    scores: Scores = entry.load()()(model, task)
    return scores


@each
def test_scores_are_finite_named_and_the_same_again(entry: Entry, model: Model, task: Task) -> None:
    with untouched(model.module):
        first = scored(entry, model, task)
    again = scored(entry, model, task.on(model))
    known = ~first.values.isnan()
    assert known.any()
    assert first.values[known].isfinite().all()
    torch.testing.assert_close(first.values, again.values, equal_nan=True)
    assert first.method == entry.name
    assert first.task == "tiny"
    assert len(first.top(5)) == min(5, int(known.sum()))
    assert "tiny" in repr(first)
    assert '"values"' in first.to_json()


@each
def test_a_batch_is_the_mean_of_its_pairs(entry: Entry, model: Model) -> None:
    """On a wired toy, where pairs weigh alike, two pairs score as each alone."""
    toy = Model(reader())
    pairs = torch.tensor([[3, 1, 2], [5, 1, 2]]), torch.tensor([[4, 1, 2], [2, 1, 2]])
    both = Task(*pairs, [3, 5], [4, 2], name="first token")
    alone = torch.stack([scored(entry, toy, both[[i]]).values for i in range(2)])
    torch.testing.assert_close(
        scored(entry, toy, both).values, alone.mean(0), rtol=1e-4, atol=1e-5, equal_nan=True
    )


@each
def test_the_one_head_that_answers_is_on_top(entry: Entry) -> None:
    toy = Model(reader(at=(1, 2)))
    first = Task(torch.tensor([[3, 1, 2]]), torch.tensor([[4, 1, 2]]), [3], [4])
    scores = scored(entry, toy, first)
    if scores.axes == ("layer", "head"):
        assert scores.ranked()[0] == (1, 2)
    else:
        assert "1.2" in scores.top(1)[0][0]


@each
def test_a_task_that_the_network_cannot_do_is_said_so(
    entry: Entry, model: Model, task: Task
) -> None:
    turned = Task(task.clean, task.corrupt, task.wrong, task.answers)
    with pytest.warns(TaskWarning, match="does not do this task"):
        entry.load()()(model, turned)


@each
def test_bad_input_is_refused_with_the_rule(entry: Entry, model: Model, task: Task) -> None:
    longer = Task(task.clean, [f"{c} w3" for c in task.corrupt], task.answers, task.wrong)
    with pytest.raises(InputError, match="as many tokens"):
        scored(entry, model, longer)
    with pytest.raises(InputError, match="the trial is of"):
        scored(entry, tiny.model(), task.on(model))


def test_the_catalog_has_localizers() -> None:
    assert "patch" in {e.name for e in LOCALIZERS}
    assert ak.get("patch").__method__
