"""ACDC, EAP and EAP-IG on SmolLM2: what the circuits they find keep of its answer."""

import pytest
import torch

import actkit as ak
from actkit.model import Model
from actkit.trace._graph import Graph
from actkit.trace.edges._edge_circuit import edge_circuit
from actkit.trace.edges._edge_runs import EdgeRuns
from actkit.trace.edges.acdc import ACDC, divergence
from actkit.trace.edges.eap import EAP
from actkit.trace.edges.eap_ig import EAPIG
from tests._evidence import Evidence

NUM = 400


@pytest.mark.slow
@pytest.mark.paper("towards-automated-circuit-discovery")
def test_few_edges_keep_more_of_the_answer_than_others(smollm2: Model, evidence: Evidence) -> None:
    trial = ak.trace.tasks.ioi(1, corrupt="swap").on(smollm2)
    graph = Graph(smollm2, split_qkv=False)
    runs = EdgeRuns(graph, trial)
    scores = ACDC(split_qkv=False, tau=0.5)(smollm2, trial)
    num = scores.facts["num_edges"]
    evidence("SmolLM2, indirect objects, tau 0.5: edges kept of 18091", measured=num, at_most=30)
    found = edge_circuit(graph, scores.values, at_least=0.5, signed=True)
    kl = float(divergence(runs, found.kept_RS[None]))
    assert kl == pytest.approx(scores.facts["loss"], abs=1e-3)  # dead ends carry nothing
    rows, gen = graph.exists_RS.nonzero(), torch.Generator().manual_seed(0)
    random = torch.zeros(20, *graph.exists_RS.shape, dtype=torch.bool)
    for version in random:
        own = rows[torch.randperm(len(rows), generator=gen)[:num]]
        version[own[:, 0], own[:, 1]] = True
    # so few random edges never join the input to the logits: their KL is that of the corrupt run,
    # and no circuit that is found has a tenth of it (3.09 of 4.86 nats here)
    ratio = float(divergence(runs, random).min()) / kl
    evidence("KL of random prunings of as many edges / KL of ACDC's", measured=ratio, at_least=1.3)


def test_edges_of_integrated_gradients_keep_more_than_those_of_one_gradient(
    smollm2: Model,
) -> None:
    trial = ak.trace.tasks.ioi(1, corrupt="swap").on(smollm2)
    graph = Graph(smollm2, split_qkv=False)
    methods = [EAP(split_qkv=False), EAPIG(split_qkv=False)]
    kept = [edge_circuit(graph, of(smollm2, trial).values, num=NUM).kept_RS for of in methods]
    one, several = EdgeRuns(graph, trial).faithfulness(torch.stack(kept)).tolist()
    assert several > one + 0.05
    assert several > 0.5
