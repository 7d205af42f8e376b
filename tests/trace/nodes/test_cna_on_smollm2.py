"""Comparative neuron analysis on one-digit addition: the head that matters most is found.

Shapes: B prompts, V vocabulary.
"""

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.model import Model
from actkit.trace import Task
from actkit.trace.nodes.cna import CNA
from tests._evidence import Evidence

SUMS = [(a, b) for a in range(1, 9) for b in range(1, 10 - a) if (a, b) != (1, 5)]
Head = tuple[int, int]


def solved(model: Model) -> Task:
    """Return the additions that the network does, each against the next one."""
    prompts = [f"1 + 5 = 6, {a} + {b} = " for a, b in SUMS]
    answers = torch.tensor([model.tokenizer(str(a + b))["input_ids"][-1] for a, b in SUMS])
    logits = model.run(prompts, logits=True).logits
    right = (logits[:, -1].argmax(-1) == answers).nonzero()[:, 0].tolist()
    every = Task(prompts, prompts[1:] + prompts[:1], answers, metric="log probability")
    return every[right]


@pytest.mark.slow
@pytest.mark.paper("interpreting-arithmetic-mechanism-large")
def test_addition_depends_on_the_head_of_largest_importance(
    smollm2: Model, evidence: Evidence
) -> None:
    """The head is chosen on every second addition and zeroed on the others.

    The first ten layers are left out: there the stream is still the last prompt token's own, of
    which the head reads nothing (it gives heads of layer 0 up to 16 nats, whose loss costs none).
    """
    task = solved(smollm2)
    evidence("additions solved, of 35", measured=len(task), at_least=30)
    chosen, rest = task[::2], task[1::2][:12]
    scores = CNA(None, "heads", layers=range(10, 30))(smollm2, chosen)
    best = scores.ranked()[0]
    answers = rest.on(smollm2).plus
    assert answers is not None

    def right(logits_nPV: Tensor) -> Tensor:
        said_n = logits_nPV[:, -1].argmax(-1)
        return (said_n == answers[:, 0].repeat(len(said_n) // len(answers))).float()

    gen = torch.Generator().manual_seed(0)
    others = [(i // 9, i % 9) for i in torch.randperm(270, generator=gen).tolist()]
    heads = [best, *[head for head in others if head != best][:20]]
    zeroed = [[ak.scale(f"z.{layer}", 0.0, ak.Where(heads=h))] for layer, h in heads]
    drops = 1 - smollm2.sweep(list(rest.clean), zeroed, right).mean(-1)
    random = drops[1:].quantile(0.95).item()
    evidence("accuracy lost with the head found, less the 95th percentile of 20 random heads",
             measured=drops[0] - random, at_least=0.05)  # fmt: skip
