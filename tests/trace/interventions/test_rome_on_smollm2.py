"""Moving Paris to Rome in SmolLM2, against gradient fine-tuning of the same matrix.

Shapes: B prompts, V vocabulary.
"""

from copy import deepcopy
from typing import Any

import pytest
import torch

import actkit as ak
from actkit.model import Model
from actkit.trace.interventions.rome import Rome
from actkit.trace.interventions.rome._facts import Checked, Fact, checked, token_id
from tests._evidence import Evidence

LAYER = 12
FACT = Fact("The capital of {} is", "France", " Rome", " Paris")
PARAPHRASES = ["The capital city of France is called", "France has its capital in the city of"]
NEIGHBOURS = {
    f"The capital of {country} is": capital
    for country, capital in (
        ("Japan", " Tokyo"), ("Egypt", " Cairo"), ("Germany", " Berlin"), ("Spain", " Madrid")
    )
}  # fmt: skip
UNRELATED = [
    "The cat sat on the", "My favourite colour is", "Water boils at a temperature of",
    "She opened the door and", "The first president of the United States was", "He plays the",
    "The largest planet in the solar system is", "To bake bread you need flour and",
    "In the morning I like to drink", "The train was late, so we", "A triangle has three",
    "The opposite of hot is", "The best way to learn is to", "Yesterday it rained all",
    "The author of the book is", "Plants need light and", "The dog barked at the",
    "Please send me an", "The price of oil has", "Once upon a time there was a",
]  # fmt: skip


def fine_tuned(model: Model, path: str, goal: float) -> Any:
    """Return a copy of a map, trained by Adam on the fact alone until it is as probable."""
    tuned, target = deepcopy(model.module.get_submodule(path)), token_id(model, FACT.target)
    optimiser = torch.optim.Adam(tuned.parameters(), lr=5e-4)
    with model.replaced({path: tuned}):
        for _ in range(100):
            logits = model.run(str(FACT), logits=True, grad=True).logits
            log_p = logits[0, -1].log_softmax(-1)[target]
            if log_p.exp() >= goal:
                break
            weights = list(tuned.parameters())
            for weight, grad in zip(weights, torch.autograd.grad(-log_p, weights), strict=True):
                weight.grad = grad
            optimiser.step()
    return tuned


@pytest.mark.slow
@pytest.mark.paper("locating-editing-factual-associations")
def test_a_capital_moves_and_the_rest_stays(smollm2: Model, evidence: Evidence) -> None:
    """The learning rate of fine-tuning is the paper's for its baseline."""
    rome = Rome(LAYER, num_prefixes=2, steps=10).fit(smollm2, ak.data.text(num_samples=25))
    edit = rome.edit(smollm2, FACT)

    def check(modules: Any) -> Checked:
        return checked(smollm2, modules, FACT, PARAPHRASES, NEIGHBOURS, UNRELATED)

    edited = check(edit.applied(smollm2))
    evidence("P(Rome) after the edit", measured=edited.probability, at_least=0.9)
    tuned = fine_tuned(smollm2, edit.path, edited.probability)
    gradient = check(smollm2.replaced({edit.path: tuned}))
    evidence("its KL on 20 unrelated prompts over fine-tuning's to the same probability",
             measured=edited.kl / gradient.kl, at_most=0.9)  # fmt: skip
    evidence("share of paraphrases that follow", measured=edited.paraphrase, at_least=0.5)
    evidence("share of four neighbours that keep their capital, less fine-tuning's",
             measured=edited.neighbourhood - gradient.neighbourhood, at_least=0)  # fmt: skip
