"""Subnetwork probing: the distribution of its masks, and the heads of a wired circuit.

Shapes: N draws.
"""

import math

import pytest
import torch

from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Parts, Task
from actkit.trace._edges import roc_auc
from actkit.trace.nodes.subnetwork_probing import SubnetworkProbing, hard_concrete, open_probability
from actkit.worlds.toy_transformer import reader
from tests._evidence import Evidence
from tests.core import tiny
from tests.trace import _induction
from tests.trace.nodes.test_head_importance import TASK


@pytest.mark.parametrize("location", [-3.0, -0.5, 0.0, 1.3])
def test_masks_are_open_as_often_as_their_probability_says(location: float) -> None:
    uniform = (torch.arange(100_000) + 0.5) / 100_000
    masks = hard_concrete(torch.tensor(location), uniform)
    share = (masks > 0).float().mean()
    assert share == pytest.approx(float(open_probability(torch.tensor(location))), abs=1e-3)
    # P(mask < 1/2) = P(logit(u) + location < logit(1/2) / heat = 0)
    below = (masks < 0.5).float().mean()
    assert below == pytest.approx(1 / (1 + math.exp(location)), abs=1e-3)
    assert masks.min() >= 0
    assert masks.max() <= 1


@pytest.mark.paper("towards-automated-circuit-discovery")
def test_the_heads_of_a_wired_circuit_are_kept(evidence: Evidence) -> None:
    m, task = _induction.wired(), _induction.task()
    scores = SubnetworkProbing()(m, task).values
    circuit = torch.zeros(2, 3, dtype=torch.bool)
    circuit[0, 0] = circuit[1, 0] = True
    evidence("subnetwork probing: least probability of a head of the circuit",
             measured=scores[circuit].min(), at_least=0.9)  # fmt: skip
    evidence("subnetwork probing: largest probability of another head",
             measured=scores[~circuit].max(), at_most=0.2)  # fmt: skip
    evidence("subnetwork probing: ROC AUC", measured=roc_auc(scores, circuit), equals=1,
             tolerance=0)  # fmt: skip


def test_the_price_decides_what_stays() -> None:
    """Without the head the KL is 0.22 nats: a price above closes it, none leaves all open."""
    m = Model(reader(at=(1, 1)))
    task = Task(torch.tensor([[3, 1]]), torch.tensor([[4, 1]]), [3], [4])
    closed = SubnetworkProbing(penalty=1.0)(m, task).values
    assert closed.max() < 0.2
    free = SubnetworkProbing(penalty=0.0)(m, task).values
    assert free.min() > 0.9
    assert free[1, 1] == free.max()


def test_other_parts_can_be_masked_and_the_seed_alone_decides() -> None:
    m = tiny.model()
    before = torch.random.get_rng_state()
    first, again = (SubnetworkProbing("mlps", steps=5)(m, TASK).values for _ in range(2))
    other = SubnetworkProbing("mlps", steps=5, seed=1)(m, TASK).values
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())
    assert SubnetworkProbing("neurons", steps=2)(m, TASK).values.shape == (3, tiny.HIDDEN)
    with pytest.raises(InputError, match="parts without positions"):
        SubnetworkProbing(Parts("z", ("position", "head")), steps=2)(m, TASK)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"rate": 0.0}, {"penalty": -1.0}], ids=str)
def test_settings_that_are_none_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="steps must be at least 1"):
        SubnetworkProbing(**wrong)  # type: ignore[arg-type]
