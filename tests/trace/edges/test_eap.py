"""Edge attribution patching: against derivatives of a network written out edge by edge.

Shapes: R receivers, S senders, B pairs, T tokens.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.model import Model
from actkit.trace import Task, _edges
from actkit.trace._gradients import with_metric
from actkit.trace._graph import Graph
from actkit.trace.edges._edge_runs import EdgeRuns
from actkit.trace.edges.eap import EAP
from tests.core import tiny
from tests.core.sites.architectures.test_decoders import opened
from tests.trace._edges_by_hand import ByHand, network

CLEAN = torch.tensor([[5, 1, 2, 3, 4], [7, 1, 8, 3, 2], [1, 1, 4, 6, 2]])
CORRUPT = torch.tensor([[5, 6, 2, 3, 4], [7, 3, 4, 3, 1], [1, 2, 3, 6, 2]])
TASK = Task(CLEAN, CORRUPT, metric=lambda logits: logits[:, -1, 1] - 2 * logits[:, -1, 3])
SPLITS = pytest.mark.parametrize("split", [True, False], ids=["qkv", "heads"])


def derivatives(hand: ByHand, x_BTD: Tensor) -> Tensor:
    """Return d mean(M) / d nudge of every edge by what its sender changes, (R, S)."""
    with torch.no_grad():
        sides = [hand.outputs(hand.embed(ids)) for ids in (CLEAN, CORRUPT)]
    change = [a - b for a, b in zip(*sides, strict=True)]
    nudge = torch.zeros(hand.shape, dtype=torch.float64, requires_grad=True)
    logits, _ = hand.run(x_BTD, nudge_RS=nudge, change=change)
    (found,) = torch.autograd.grad((logits[:, 1] - 2 * logits[:, 3]).mean(), nudge)
    return found


@SPLITS
@pytest.mark.parametrize("most", [64_000_000, 1], ids=["at-once", "pair-by-pair"])
def test_scores_are_the_derivatives_by_every_edge(
    split: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_edges, "MOST", most)
    net = network()
    hand, m = ByHand(net, split), Model(net)
    scores = EAP(split)(m, TASK)
    wanted = derivatives(hand, hand.embed(CLEAN).detach())
    exists = Graph(m, split).exists_RS
    torch.testing.assert_close(scores.values[exists], wanted[exists].float(), rtol=1e-4, atol=1e-5)
    assert scores.values[~exists].isnan().all()
    assert scores.axes == ("receiver", "sender")


@pytest.mark.parametrize("name", ["llama", "pythia", "phi3", "opt"])
def test_scores_add_up_where_they_must(name: str) -> None:
    """Edges from one head sum to its attribution; a group's edges are its q, k and v's."""
    m = opened(name)
    trial = TASK.on(m)
    graph, scores = Graph(m), EAP()(m, trial)
    rec, values = with_metric(trial, "clean", ["z.1"])
    (grad,) = torch.autograd.grad(values.mean(), rec["z.1"])
    change = rec["z.1"].detach() - m.run(CORRUPT, record="z.1")["z.1"]
    wanted = (change * grad).sum((0, 1, 3))
    heads = [graph.senders.index(f"head 1.{h}") for h in range(graph.heads)]
    found = scores.values.nansum(0)[heads]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    whole = EAP(split_qkv=False)(m, trial)
    assert whole.values.nansum().item() == pytest.approx(float(scores.values.nansum()), abs=1e-4)


def test_two_forward_passes_and_one_backward_pass() -> None:
    m = tiny.model()
    trial = TASK.on(m)
    trial.check()
    EAP()(m, trial)  # modules that were seen to run once end a run early from then on
    calls, remove = tiny.counted(m.module, "lm_head")
    blocks, stop = tiny.counted(m.module, "model.layers.2.mlp")
    backward: list[int] = []
    handle = m.module.get_submodule("model.layers.0.mlp.down_proj").register_full_backward_hook(
        lambda *_: backward.append(1)
    )
    EAP()(m, trial)
    for undo in (remove, stop, handle.remove):
        undo()
    assert len(calls) == 1  # the clean prompts; the corrupt ones stop before the logits,
    assert len(blocks) == 3  # as do the ten tokens that the graph looks at
    assert len(backward) == 1


def test_a_metric_flat_at_the_clean_prompts_gives_nothing() -> None:
    m = tiny.model()
    scores = EAP()(m, Task(CLEAN, CORRUPT, metric="KL"))
    assert scores.values.abs().nan_to_num(0).max() < 1e-5


def rank_agreement(a: Tensor, b: Tensor) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a.numpy(), b.numpy()).statistic)


def test_large_scores_agree_with_removing_the_edge_alone(smollm2: Model) -> None:
    """On SmolLM2: of the edges into the logits, scores against exact runs of each."""
    trial = ak.trace.tasks.ioi(2, corrupt="swap").on(smollm2)
    scores = EAP(split_qkv=False)(smollm2, trial)
    graph = Graph(smollm2, split_qkv=False)
    runs = EdgeRuns(graph, trial)
    chosen = [i for i in scores.ranked() if i[0] == len(graph.receivers) - 1][:40]
    kept = graph.exists_RS.repeat(len(chosen), 1, 1)
    for version, (receiver, sender) in enumerate(chosen):
        kept[version, receiver, sender] = False
    lost = trial.clean_values.mean() - runs.metric(kept).mean(-1)
    told = torch.tensor([scores.values[i] for i in chosen])
    assert rank_agreement(told, lost) > 0.9


def test_settings_are_kept_in_the_scores() -> None:
    m = tiny.model()
    told: Any = EAP(split_qkv=False)(m, TASK)
    assert (told.method, told.unit, told.parts) == ("eap", "metric", "edges")
    assert told.names[0][0] == "group 0.0"
