"""ACDC: on an induction circuit wired by hand, and against edges removed one by one.

Shapes: R receivers, S senders.
"""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Scores, Task
from actkit.trace._edges import roc_auc
from actkit.trace._graph import Graph
from actkit.trace.edges import _edge_runs
from actkit.trace.edges._edge_circuit import edge_circuit
from actkit.trace.edges._edge_runs import EdgeRuns
from actkit.trace.edges.acdc import ACDC, divergence
from actkit.trace.edges.eap import EAP
from tests._evidence import Evidence
from tests.core import tiny
from tests.trace import _induction
from tests.trace._edges_by_hand import network

CLEAN = torch.tensor([[5, 1, 2, 3, 4], [7, 1, 8, 3, 2]])
CORRUPT = torch.tensor([[5, 6, 2, 3, 4], [7, 3, 4, 3, 1]])
TASK = Task(CLEAN, CORRUPT, metric="KL")
TAUS = torch.logspace(-3, 0, 8).tolist()


def kept(scores: Scores) -> Tensor:
    return torch.as_tensor(scores.values.nan_to_num(-torch.inf) >= scores.facts["tau"])


def known(graph: Graph) -> Tensor:
    found = torch.zeros_like(graph.exists_RS)
    for edge in _induction.KNOWN:
        sender, receiver = edge.split(" -> ")
        found[graph.receivers.index(receiver), graph.senders.index(sender)] = True
    return found


def one_by_one(graph: Graph, runs: EdgeRuns, tau: float) -> tuple[Tensor, Tensor]:
    """Return kept edges and growths of algorithm 1 as it is written, one run for each edge."""
    left = graph.exists_RS.clone()
    growth = torch.full(left.shape, torch.nan)
    now = divergence(runs, left[None])[0]
    for receiver in reversed(range(len(graph.receivers))):
        for sender in reversed(graph.exists_RS[receiver].nonzero()[:, 0].tolist()):
            without = left.clone()
            without[receiver, sender] = False
            loss = divergence(runs, without[None])[0]
            growth[receiver, sender] = loss - now
            if loss - now < tau:
                left, now = without, loss
    return left, growth


@pytest.mark.parametrize(
    ("which", "tau"), [("gpt2", 0.0003), ("gpt2", 0.003), ("llama", 0.03), ("llama", 0.3)]
)
def test_batches_decide_as_one_edge_after_another(which: str, tau: float) -> None:
    m = Model(network().float()) if which == "gpt2" else tiny.model()
    trial = TASK.on(m)
    graph = Graph(m, split_qkv=which == "gpt2")
    scores = ACDC(split_qkv=which == "gpt2", tau=tau)(m, trial)
    left, growth = one_by_one(graph, EdgeRuns(graph, trial), tau)
    assert torch.equal(kept(scores), left)
    assert 3 < int(left.sum()) < int(graph.exists_RS.sum()) - 3
    torch.testing.assert_close(scores.values, growth, rtol=1e-3, atol=1e-4, equal_nan=True)
    alone = EdgeRuns(graph, trial)
    assert scores.facts["loss"] == pytest.approx(float(divergence(alone, left[None])), abs=1e-4)


@pytest.mark.paper("towards-automated-circuit-discovery")
def test_a_wired_circuit_is_found_exactly(evidence: Evidence) -> None:
    m, task = _induction.wired(), _induction.task()
    trial, graph = task.on(m), Graph(m)
    runs, wanted = EdgeRuns(graph, trial), known(graph)
    sizes, best, losses = [], (0.0, 0.0, 0.0), []
    for tau in TAUS:
        scores = ACDC(tau=tau)(m, trial)
        found = kept(scores)
        sizes.append(int(found.sum()))
        right = int((found & wanted).sum())
        precision, recall = right / max(1, sizes[-1]), right / int(wanted.sum())
        if (precision + recall) > sum(best[:2]):
            best, losses = (precision, recall, tau), [scores.facts["loss"], scores]
    evidence("precision at the best of 8 taus", measured=best[0], equals=1, tolerance=0)
    evidence("recall at the same tau", measured=best[1], equals=1, tolerance=0)
    rises = max(b - a for a, b in pairwise(sizes))
    evidence("largest rise of kept edges from one tau to the next", measured=rises, at_most=0)
    gen = torch.Generator().manual_seed(0)
    rows = graph.exists_RS.nonzero()
    random = torch.zeros(20, *graph.exists_RS.shape, dtype=torch.bool)
    for version in random:
        own = rows[torch.randperm(len(rows), generator=gen)[: len(_induction.KNOWN)]]
        version[own[:, 0], own[:, 1]] = True
    ratio = float(divergence(runs, random).min()) / losses[0]
    evidence("least KL of 20 random prunings of as many edges / KL of ACDC's", measured=ratio,
             at_least=10)  # fmt: skip
    evidence("ROC AUC of ACDC's scores", measured=roc_auc(losses[1].values, wanted), at_least=0.99)
    # attention is saturated, so edges into queries and keys have hardly a gradient: 0.90
    auc = roc_auc(EAP()(m, trial).values, wanted)
    evidence("ROC AUC of EAP's scores", measured=auc, at_least=0.85)


@pytest.mark.paper("towards-automated-circuit-discovery")
def test_thresholds_without_and_with_all_removed(evidence: Evidence) -> None:
    m = _induction.wired()
    trial = _induction.task().on(m)
    nothing = ACDC(tau=0.0)(m, trial)
    evidence("KL at tau 0 (nats)", measured=nothing.facts["loss"], equals=0, tolerance=1e-6)
    assert nothing.facts["num_edges"] == int(kept(nothing).sum())  # those without effect stay
    everything = ACDC(tau=float("inf"))(m, trial)
    evidence("edges kept at tau infinite", measured=everything.facts["num_edges"], equals=0,
             tolerance=0)  # fmt: skip
    graph = Graph(m)
    logits = EdgeRuns(graph, trial).logits(kept(everything)[None])
    error = (logits - trial.corrupt_logits).abs().max()
    evidence("largest difference of its logits from the corrupt run's", measured=error,
             at_most=1e-5)  # fmt: skip


def test_a_circuit_of_the_scores_is_the_kept_edges() -> None:
    m = _induction.wired()
    scores = ACDC(tau=0.1)(m, _induction.task())
    found = edge_circuit(Graph(m), scores.values, at_least=0.1, signed=True)
    assert set(found) == _induction.KNOWN
    assert scores.facts["num_edges"] == found.num_edges == 5


def test_the_task_s_own_number_can_be_the_loss() -> None:
    m = _induction.wired()
    trial = _induction.task().on(m)
    scores = ACDC(tau=1.0, loss="metric")(m, trial)
    assert set(edge_circuit(Graph(m), scores.values, at_least=1.0, signed=True)) == _induction.KNOWN
    graph = Graph(m)
    value = EdgeRuns(graph, trial).metric(kept(scores)[None]).mean()
    assert scores.facts["loss"] == pytest.approx(float(trial.clean_values.mean() - value), abs=1e-4)


def test_few_rows_at_once_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    m, few = tiny.model(), ACDC(split_qkv=False, tau=0.3)
    whole = few(m, TASK).values
    monkeypatch.setattr(_edge_runs, "MOST_ROWS", 2)
    torch.testing.assert_close(whole, few(m, TASK).values, rtol=1e-3, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("tau", [-0.1, float("nan")])
def test_a_threshold_that_is_none_is_refused(tau: float) -> None:
    with pytest.raises(InputError, match="tau must be at least 0"):
        ACDC(tau=tau)
    with pytest.raises(InputError, match="loss must be 'KL' or 'metric', got 'kl'"):
        ACDC(loss="kl")  # type: ignore[arg-type]
