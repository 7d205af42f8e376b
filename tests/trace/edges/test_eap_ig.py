"""EAP with integrated gradients: against derivatives written out, and where EAP sees nothing.

Shapes: R receivers, S senders.
"""

import pytest
import torch

from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Task
from actkit.trace._graph import Graph
from actkit.trace.edges._edge_circuit import edge_circuit
from actkit.trace.edges._edge_runs import EdgeRuns
from actkit.trace.edges.eap import EAP
from actkit.trace.edges.eap_ig import EAPIG
from tests.core import tiny
from tests.trace._edges_by_hand import ByHand, network
from tests.trace.edges.test_eap import CLEAN, CORRUPT, SPLITS, TASK, derivatives


@SPLITS
def test_scores_are_the_mean_of_derivatives_on_the_way(split: bool) -> None:
    net = network(1)
    hand, m = ByHand(net, split), Model(net)
    scores = EAPIG(split, steps=3)(m, TASK).values
    z, other = (hand.embed(ids).detach() for ids in (CLEAN, CORRUPT))
    wanted = sum(derivatives(hand, other + k / 3 * (z - other)) for k in (1, 2, 3)) / 3
    exists = Graph(m, split).exists_RS
    torch.testing.assert_close(
        scores[exists], torch.as_tensor(wanted)[exists].float(), rtol=1e-4, atol=1e-5
    )


def test_one_step_is_eap() -> None:
    m = tiny.model()
    torch.testing.assert_close(
        EAPIG(steps=1)(m, TASK).values, EAP()(m, TASK).values, rtol=1e-3, atol=1e-4, equal_nan=True
    )


def test_what_leaves_the_input_adds_up_to_the_gap() -> None:
    """The change of the input alone moves everything, so with many steps its edges give the gap."""
    m = tiny.model()
    trial = TASK.on(m)
    scores = EAPIG(steps=100)(m, trial)
    assert scores.values[:, 0].nansum().item() == pytest.approx(trial.gap, rel=0.05)


def test_a_circuit_is_found_where_the_metric_is_flat() -> None:
    """For KL the gradient at the clean prompts is zero: EAP ranks by rounding, EAP-IG does not."""
    m = tiny.model()
    trial = Task(CLEAN, CORRUPT, metric="KL").on(m)
    graph = Graph(m)
    runs = EdgeRuns(graph, trial)
    found = {of: edge_circuit(graph, of()(m, trial).values, num=100) for of in (EAP, EAPIG)}
    kl = {of: float(runs.metric(c.kept_RS[None]).mean()) for of, c in found.items()}
    assert kl[EAPIG] < 0.8 * kl[EAP]


def test_a_way_without_steps_is_refused() -> None:
    with pytest.raises(InputError, match="steps must be at least 1, got 0"):
        EAPIG(steps=0)
