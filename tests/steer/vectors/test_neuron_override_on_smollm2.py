"""Concept neurons of SmolLM2, found by their value vectors and overridden."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import actkit as ak
from actkit.find.neurons.value_vectors import ValueVectors, value_vectors
from actkit.model import Model
from actkit.steer.vectors.neuron_override import NeuronOverride
from tests._evidence import Evidence

PROMPTS = ["The robot arm moves", "The lift is going", "She asked him to walk", "The car drives"]
CONCEPTS = {
    "up": "up upward upwards above rise rising raise raised lift lifted upper higher climb ascend",
    "slow": "slow slowly slower slowest slowed slowing slowdown gradual gradually leisurely",
}
LAYERS = range(10, 30)


@pytest.fixture(scope="module")
def projected(smollm2: Model) -> ValueVectors:
    """In bfloat16: the products of 20 layers take 15 s instead of 45."""
    return value_vectors(smollm2, LAYERS, dtype=torch.bfloat16)


def log_share(model: Model, words: Sequence[str], edits: Any = ()) -> float:
    """Return mean log P of the words that are one token, as the next word."""
    ids = [model.tokenizer(f" {w}")["input_ids"] for w in words]
    single = [own[0] for own in ids if len(own) == 1]
    logits = model.run(PROMPTS, edits=edits, logits=True).logits
    return float(logits[:, -1].log_softmax(-1)[:, single].logsumexp(-1).mean())


def at_random(seed: int) -> dict[int, list[int]]:
    """Return ten neurons of the same layers."""
    gen = torch.Generator().manual_seed(seed)
    found: dict[int, list[int]] = defaultdict(list)
    for flat in torch.randperm(len(LAYERS) * 1536, generator=gen)[:10].tolist():
        found[LAYERS[flat // 1536]].append(flat % 1536)
    return found


@pytest.mark.slow
@pytest.mark.paper("mechanistic-interpretability-steering-vision")
def test_concept_neurons(smollm2: Model, projected: ValueVectors, evidence: Evidence) -> None:
    for concept, line in CONCEPTS.items():
        words = line.split()
        before = log_share(smollm2, words)

        def gain(neurons: Any, words: Any = words, before: float = before) -> float:
            edits = NeuronOverride(value=10.0).fit(smollm2, neurons).edits(1.0)
            return log_share(smollm2, words, edits) - before

        own = gain(projected.concept(words, num_neurons=10))
        evidence(f"gain of log P({concept} words) at alpha 10 (nats)", measured=own, at_least=1.0)
        others = torch.tensor([gain(at_random(seed)) for seed in range(20)])
        over = own - float(others.mean())
        evidence(f"{concept}: less the mean of 20 random draws", measured=over, at_least=1.5)
        rank = float((others < own).float().mean())
        evidence(f"{concept}: share of random draws below", measured=rank, at_least=0.8)


@pytest.mark.paper("mechanistic-interpretability-steering-vision")
def test_writing_back_what_was_there_changes_nothing(smollm2: Model, evidence: Evidence) -> None:
    sites = [f"mlp_hidden.{n}" for n in (10, 20, 29)]
    rec = smollm2.run(PROMPTS, sites, logits=True)
    units = [3, 700, 1535]
    edits = [ak.set(s, rec[s][..., units], ak.Where(units=units)) for s in sites]
    again = smollm2.run(PROMPTS, edits=edits, logits=True)
    change = (again.logits - rec.logits).abs().max()
    evidence("logit change, recorded activations written back", measured=change, at_most=0)
