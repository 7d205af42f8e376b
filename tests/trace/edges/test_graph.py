"""The graph of edges: runs against a network written out edge by edge, on every architecture.

Shapes: V versions, R receivers, S senders, B pairs, T tokens.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import InputError, SiteError
from actkit.model import Model
from actkit.trace import Task, Trial
from actkit.trace._edge_circuit import edge_circuit, without_dead_ends
from actkit.trace._edges import roc_auc
from actkit.trace._graph import Graph
from actkit.trace.edges.acdc._edge_runs import EdgeRuns
from actkit.worlds.toy_transformer import reader
from tests.core import tiny
from tests.core.sites.architectures.test_decoders import opened
from tests.core.tiny import untouched
from tests.trace._edges_by_hand import ByHand, network

CLEAN = torch.tensor([[5, 1, 2, 3, 4], [7, 1, 8, 3, 2]])
CORRUPT = torch.tensor([[5, 6, 2, 3, 4], [7, 3, 4, 3, 1]])
SPLITS = pytest.mark.parametrize("split", [True, False], ids=["qkv", "heads"])
GOOD = ["llama", "qwen3", "gpt2", "pythia", "neox-serial", "opt", "phi3", "mixtral"]


def trial_of(m: Model) -> Trial:
    return Task(CLEAN, CORRUPT, [1, 2], [3, 4]).on(m)


def without(graph: Graph, receiver: str | None = None, sender: str | None = None) -> Tensor:
    """Return all edges but those of some ends, (1, R, S)."""
    kept = graph.exists_RS.clone()
    rows = slice(None) if receiver is None else graph.receivers.index(receiver)
    kept[rows, slice(None) if sender is None else graph.senders.index(sender)] = False
    return kept[None]


def last(m: Model, inputs: Tensor, edits: list[ak.Edit] | None = None) -> Tensor:
    return m.run(inputs, edits=edits or [], logits=True).logits[:, -1:]


@SPLITS
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "plain"])
def test_any_set_of_edges_runs_as_written_out_edge_by_edge(split: bool, norm: bool) -> None:
    net = network(norm=norm, mlp=11 if norm else 0)
    hand, m = ByHand(net, split), Model(net)
    graph = Graph(m, split)
    runs = EdgeRuns(graph, trial_of(m))
    gen = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.1, 0.5, 0.9, 0.97])[:, None, None]
    kept_VRS = torch.rand(4, *hand.shape, generator=gen) < shares
    assert graph.exists_RS.shape == hand.shape
    with torch.no_grad():
        corrupt = hand.outputs(hand.embed(CORRUPT))
        for kept, got in zip(kept_VRS, runs.logits(kept_VRS).view(4, 2, 1, -1), strict=True):
            wanted, _ = hand.run(hand.embed(CLEAN), kept.double(), corrupt)
            torch.testing.assert_close(got[:, -1], wanted)


@SPLITS
@pytest.mark.parametrize("name", GOOD)
def test_ends_are_the_bare_runs_and_patches_of_single_ends(name: str, split: bool) -> None:
    """All edges give the clean run, none the corrupt one; one end's edges are patches there."""
    m = opened(name)
    graph, trial = Graph(m, split), trial_of(m)
    with untouched(m.module):
        runs = EdgeRuns(graph, trial)
        ends = runs.logits(torch.stack([graph.exists_RS, 0 * graph.exists_RS]))
    torch.testing.assert_close(ends[:2], last(m, CLEAN), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ends[2:], last(m, CORRUPT), rtol=1e-5, atol=1e-5)
    kv, group = ("head", "head") if graph.heads == graph.kv_heads else ("kv", "group")
    patches: dict[tuple[str | None, str | None], list[tuple[str, Any]]] = {
        (None, "head 1.4"): [("z.1", 4)],
        (None, "mlp 0"): [("mlp_out.0", None)],
        ("mlp 1", None): [("mlp_in.1", None)],
        ("logits", None): [("resid_post.2", None)],
    }
    if split:
        patches |= {("head 1.2 q", None): [("q.1", 2)], (f"{kv} 1.1 k", None): [("k.1", 1)],
                    (f"{kv} 1.0 v", None): [("v.1", 0)]}  # fmt: skip
    else:
        own = list(range(graph.heads // graph.kv_heads))
        patches[f"{group} 1.0", None] = [("q.1", own), ("k.1", 0), ("v.1", 0)]
    for (receiver, sender), sites in patches.items():
        rec = m.run(CORRUPT, record=[site for site, _ in sites])
        edits = [ak.swap(site, rec, ak.Where(heads=h)) for site, h in sites]
        got = runs.logits(without(graph, receiver, sender))
        torch.testing.assert_close(got, last(m, CLEAN, edits), rtol=1e-4, atol=1e-4)


@SPLITS
def test_versions_together_are_each_alone_whatever_the_padding(split: bool) -> None:
    m = tiny.model()
    pairs = ["w1 w2 w3 w4 w5", "w6 w7 w8"], ["w1 w2 w9 w4 w5", "w6 w1 w8"]
    graph, trial = Graph(m, split), Task(*pairs, [1, 2], [3, 4]).on(m)
    runs = EdgeRuns(graph, trial)
    gen = torch.Generator().manual_seed(1)
    kept_VRS = torch.rand(3, *graph.exists_RS.shape, generator=gen) < 0.8
    together = runs.logits(kept_VRS)
    assert torch.equal(runs.metric(kept_VRS).flatten(), trial.metric(together))
    for row in range(2):
        own = Task([pairs[0][row]], [pairs[1][row]], [1], [3]).on(m)
        alone = torch.cat([EdgeRuns(graph, own).logits(kept[None]) for kept in kept_VRS])
        torch.testing.assert_close(together[row::2], alone, rtol=1e-4, atol=1e-4)


def test_a_network_that_cannot_go_on_from_a_cache_runs_whole() -> None:
    m = tiny.model()
    graph, trial = Graph(m), trial_of(m)
    kept_VRS = (
        torch.rand(3, *graph.exists_RS.shape, generator=torch.Generator().manual_seed(2)) < 0.7
    )
    runs = EdgeRuns(graph, trial)
    whole = EdgeRuns(graph, trial)
    whole._base_run, whole.position = None, 0
    clean, corrupt = (m.run(x, record=graph.sites) for x in (CLEAN, CORRUPT))
    whole.corrupt = dict(corrupt)
    whole.change_SBTD = graph.outputs(clean) - graph.outputs(corrupt)
    torch.testing.assert_close(runs.logits(kept_VRS), whole.logits(kept_VRS), rtol=1e-4, atol=1e-4)
    assert runs.faithfulness(graph.exists_RS[None]).item() == pytest.approx(1, abs=1e-4)


def test_half_precision_runs_in_its_own_dtype() -> None:
    m = tiny.model(torch.bfloat16)
    graph, trial = Graph(m, split_qkv=False), trial_of(m)
    ends = EdgeRuns(graph, trial).logits(torch.stack([graph.exists_RS, 0 * graph.exists_RS]))
    assert ends.dtype == torch.bfloat16
    for got, wanted in zip(ends.view(2, 2, 1, -1), (trial.clean_logits, trial.corrupt_logits),
                           strict=True):  # fmt: skip
        assert (got - wanted).norm() < 0.05 * wanted.norm()


def test_names_and_numbers_of_edges() -> None:
    """6 query heads on 2 key-value heads, 3 blocks: S = 1 + 3 * 7, R = 3 * (6 + 2 + 2 + 1) + 1."""
    graph = Graph(tiny.model())
    assert (len(graph.senders), len(graph.receivers)) == (22, 34)
    assert graph.receivers[5:12] == [
        "head 0.5 q", "kv 0.0 k", "kv 0.1 k", "kv 0.0 v", "kv 0.1 v", "mlp 0", "head 1.0 q",
    ]  # fmt: skip
    assert int(graph.exists_RS.sum()) == sum(10 * (1 + 7 * b) + 7 + 7 * b for b in range(3)) + 22
    k = graph.receivers.index("kv 1.1 k")
    assert [graph.senders[s] for s in graph.feeds_RS[k].nonzero()[:, 0]] == [
        "head 1.3", "head 1.4", "head 1.5",
    ]  # fmt: skip
    heads = Graph(tiny.model(), split_qkv=False)
    assert heads.receivers[:4] == ["group 0.0", "group 0.1", "mlp 0", "group 1.0"]
    parallel = Graph(opened("pythia"))
    read = parallel.exists_RS[parallel.receivers.index("mlp 1")]
    assert "head 1.0" not in [parallel.senders[s] for s in read.nonzero()[:, 0]]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gemma2", "a norm or a factor comes between z.0 and attn_out.0"),
        ("olmo2", "a norm or a factor comes between z.0 and attn_out.0"),
        ("opt-350m", "does not add up to the stream"),
        ("mamba", "has no attention"),
    ],
)
def test_networks_whose_stream_is_no_sum_are_refused(name: str, reason: str) -> None:
    with pytest.raises(SiteError, match=reason):
        Graph(opened(name))


def test_what_is_no_linear_map_or_no_norm_is_refused() -> None:
    net = tiny.gpt2()
    net.transformer.h[0].attn.c_proj = nn.Sequential(net.transformer.h[0].attn.c_proj)
    with pytest.raises(SiteError, match=r"linear map at z\.0, got Sequential"):
        Graph(Model(net))
    net = tiny.gpt2()
    net.transformer.h[1].ln_2 = nn.Sequential(net.transformer.h[1].ln_2, nn.Tanh())
    with pytest.raises(SiteError, match=r"a norm that makes mlp_in\.1 of resid_mid\.1"):
        Graph(Model(net))


def test_what_does_not_fit_the_graph_is_refused() -> None:
    m = tiny.model()
    graph = Graph(m)
    runs = EdgeRuns(graph, trial_of(m))
    with pytest.raises(InputError, match=r"shape \(V, 34, 22\), got \(34, 22\)"):
        runs.logits(graph.exists_RS)
    with pytest.raises(InputError, match=r"got \(0, 34, 22\)"):
        runs.logits(graph.exists_RS[None][:0])
    with pytest.raises(InputError, match="the graph is of"):
        EdgeRuns(graph, trial_of(tiny.model()))
    with pytest.raises(InputError, match="either a number or a bound"):
        edge_circuit(graph, graph.exists_RS.float())
    with pytest.raises(InputError, match=r"shape \(34, 22\), got \(3, 22\)"):
        edge_circuit(graph, torch.ones(3, 22), num=2)


def test_a_circuit_is_the_largest_edges_without_dead_ends() -> None:
    graph = Graph(Model(reader(at=(1, 1))))
    values = torch.full(graph.exists_RS.shape, torch.nan)
    for i, edge in enumerate([
        "input -> head 1.1 v", "head 1.1 -> logits", "head 0.0 -> head 1.1 q",
        "input -> head 0.2 k",
    ]):  # fmt: skip
        sender, receiver = edge.split(" -> ")
        values[graph.receivers.index(receiver), graph.senders.index(sender)] = (-1) ** i * (9.0 - i)
    found = edge_circuit(graph, values, num=3)
    assert list(found) == ["input -> head 1.1 v", "head 1.1 -> logits"]  # head 0.0 reads nothing
    assert found.num_edges == 2
    assert list(edge_circuit(graph, values, at_least=8.5)) == []  # no way to the logits
    assert list(edge_circuit(graph, values, at_least=6.0, signed=True)) == []
    assert edge_circuit(graph, values, at_least=6.0).num_edges == 2  # head 0.2 sends nothing
    assert torch.equal(without_dead_ends(graph, graph.exists_RS), graph.exists_RS)


def test_roc_auc_counts_pairs_in_the_right_order() -> None:
    values = torch.tensor([[0.5, torch.nan], [-3.0, 1.0]])
    inside = torch.tensor([[False, True], [True, False]])
    assert roc_auc(values, inside) == 1.0
    assert roc_auc(values, torch.tensor([[True, False], [False, True]])) == pytest.approx(0)
    with pytest.raises(InputError, match="got 0 inside of 3"):
        roc_auc(values, torch.tensor([[False, True], [False, False]]))
    with pytest.raises(InputError, match=r"bool of shape \(2, 2\)"):
        roc_auc(values, inside.float())
