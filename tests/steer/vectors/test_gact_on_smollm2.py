"""The language of code that SmolLM2 goes on to write, steered from Python to C and C++."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from actkit.model import Model
from actkit.steer.vectors.gact import GACT, Choose
from actkit.steer.vectors.top_neuron import TopNeuron
from tests._evidence import Evidence

TASKS = (
    *("sorts a list of numbers", "reads a file line by line", "computes the Fibonacci sequence"),
    *("solves a linear system", "multiplies two matrices", "finds prime numbers"),
    *("counts the words of a text", "prints the current time", "integrates a function"),
    *("inverts a binary tree", "parses a date", "simulates a pendulum"),
    *("reverses a string", "solves the heat equation"),
)
FORMS = (
    "Write a program that {task}.\n\n```",
    "Here is a program that {task}:\n\n```",
    "Task: {task}\nSolution:\n```",
)
PROMPTS = [form.format(task=task) for task in TASKS for form in FORMS]
TRAIN, TEST = PROMPTS[:30], PROMPTS[30:]
STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)


@pytest.fixture(scope="module")
def fitted(smollm2: Model) -> GACT:
    pairs = [(f"{p}cpp\n#include", f"{p}python\nimport") for p in TRAIN]
    return GACT().fit(smollm2, pairs)


def logits(model: Model, edits: Any = (), prompts: Any = TEST) -> Tensor:
    found = model.run(prompts, edits=edits, logits=True).logits
    assert found is not None
    return found[:, -1]


def log_odds(model: Model, edits: Any = (), prompts: Any = TEST) -> Tensor:
    """Return log P(a tag of C or C++) - log P(a tag of Python) after each prompt."""
    c, python = (
        [model.tokenizer(tag)["input_ids"][0] for tag in tags]
        for tags in (("cpp", "c", "C"), ("python", "Python", "py"))
    )
    scores = logits(model, edits, prompts)
    return scores[:, c].logsumexp(-1) - scores[:, python].logsumexp(-1)


@pytest.mark.slow
@pytest.mark.paper("steering-conceptual-bias-transformer")
def test_language_of_code(smollm2: Model, fitted: GACT, evidence: Evidence) -> None:
    odds = torch.stack([log_odds(smollm2, fitted.edits(s)) for s in STRENGTHS])
    share = (odds.diff(dim=0) > 0).all(0).float().mean()
    evidence("share of held-out prompts that rise at each step", measured=share, at_least=0.9)
    gain = float((odds[2] - odds[0]).mean())
    evidence("gain of log-odds of C and C++ at strength 1 (nats)", measured=gain, at_least=1.0)
    same = (logits(smollm2, fitted.edits(0.0)) - logits(smollm2)).abs().max()
    evidence("logit change at strength 0", measured=same, at_most=0)

    half, changes = TEST[::2], []
    for seed in range(20):
        gen = torch.Generator().manual_seed(seed)
        edits = []
        for edit in fitted.edits(1.0):
            assert isinstance(edit.operation, Choose)
            vectors = edit.operation.vectors
            drawn = normalize(torch.randn(vectors.shape, generator=gen), dim=-1)
            drawn = drawn * vectors.norm(dim=-1, keepdim=True)
            edits.append(replace(edit, operation=replace(edit.operation, vectors=drawn)))
        changes.append(float((log_odds(smollm2, edits, half) - odds[0, ::2]).mean()))
    size = torch.tensor(changes).abs().mean() / gain
    evidence("20 random sets of its lengths, mean |change| over gain", measured=size, at_most=0.25)


@pytest.mark.paper("steering-conceptual-bias-transformer")
def test_probes_tell_clusters_in_most_layers(fitted: GACT, evidence: Evidence) -> None:
    mean = sum(fitted.accuracy_.values()) / len(fitted.accuracy_)
    evidence("accuracy of the probes on held-out pairs, mean of layers", measured=mean,
             at_least=0.9)  # fmt: skip


@pytest.mark.slow
@pytest.mark.paper("steering-conceptual-bias-transformer")
def test_the_top_neuron_is_brittle(smollm2: Model, fitted: GACT, evidence: Evidence) -> None:
    """It raises the word's log P, as its gradient says, but neither evenly nor as far."""
    top = TopNeuron("cpp").fit(smollm2, TRAIN)
    odds = torch.stack([log_odds(smollm2, top.edits(s)) for s in STRENGTHS])
    share = (odds.diff(dim=0) > 0).all(0).float().mean()
    evidence("one neuron: share of prompts that rise at each step", measured=share, at_most=0.5)
    own = (log_odds(smollm2, fitted.edits(1.0)) - odds[0]).mean()
    best = (odds - odds[0]).mean(1).max() / own
    evidence("one neuron: best gain of its strengths over that of 1", measured=best, at_most=1.0)
