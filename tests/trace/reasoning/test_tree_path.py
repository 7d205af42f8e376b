"""Path finding in trees: exact on the wired network, and the edges of a trained one.

Shapes: B trees, N nodes, T tokens.
"""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace.reasoning.tree_path import edge_swaps, patched_step, path_accuracy, tree_path
from actkit.worlds.chainer import backward_chainer
from actkit.worlds.toy_transformer import toy
from actkit.worlds.trees import Trees, draw_trees
from tests._evidence import Evidence

NODES, DEPTH = 8, 3


def test_prompts_say_the_tree_and_the_way() -> None:
    trees = draw_trees(50, 11, max_depth=4, seed=3)
    for row, tokens in enumerate(trees.tokens_BT.tolist()):
        edges = dict(zip(tokens[1:20:2], tokens[:20:2], strict=True))
        assert tokens[20] == 11
        assert tokens[22] == 12
        assert len(edges) == 10
        above = [list(edges.values()).count(name) for name in range(11)]
        assert max(above) <= 2
        assert above[tokens[23]] == 2
        way = [tokens[21]]
        while way[-1] in edges:
            way.append(edges[way[-1]])
        assert above[way[0]] == 0
        assert len(way) - 1 == trees.depth[row] <= 4
        assert way[::-1] == [n for n in trees.path_BS[row].tolist() if n >= 0]
        assert [int(trees.ancestor(k)[row]) for k in range(len(way))] == way
        assert tokens[23 : 23 + len(way)] == way[::-1]
        for child, parent in edges.items():
            assert trees.parent_BN[row, child] == parent
            assert tokens[int(trees.edge_BN[row, child])] == child


def test_patching_all_tokens_says_what_the_donor_says_and_the_end_of_paths_nothing() -> None:
    model, trees = backward_chainer(NODES, 4), draw_trees(40, NODES, DEPTH)
    other = draw_trees(40, NODES, DEPTH, seed=1)

    def said(first: int, stop: int) -> Tensor:
        mask = torch.zeros(trees.tokens_BT.shape).bool()
        mask[:, first:stop] = True
        return patched_step(model, trees, other.tokens_BT, "resid_post.1", mask)

    length = trees.tokens_BT.shape[1]
    assert torch.equal(said(0, length), other.path_BS[:, 1])
    assert torch.equal(said(trees.start + 1, length), trees.path_BS[:, 1])


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="need 3 nodes at least and room for them, got 8"):
        draw_trees(3, 8, max_depth=2)
    with pytest.raises(InputError, match="got 1 and 8"):
        backward_chainer(8, 1)
    trees = draw_trees(30, NODES)
    with pytest.raises(InputError, match="need 2 trees with goals over 1 edges away, got 0"):
        tree_path(backward_chainer(NODES), trees[trees.depth == 1])
    with pytest.raises(InputError, match="two edges away"):
        edge_swaps(backward_chainer(NODES), trees[trees.depth == 1], "resid_post.0")


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_goals_are_found_as_far_away_as_there_are_layers_for_steps(layers: int) -> None:
    accuracy = path_accuracy(backward_chainer(9, layers), draw_trees(150, 9, seed=layers))
    assert max(accuracy) >= layers
    assert all(share == (1 if d < layers else 0.5) for d, share in accuracy.items())


@pytest.mark.paper("mechanistic-analysis-transformer-trained")
def test_the_wired_network_chains_backwards_one_edge_a_layer(evidence: Evidence) -> None:
    layers = 5
    trees = draw_trees(1000, 16)
    found = tree_path(backward_chainer(16, layers), trees, num_steps=4)
    for k in range(3):
        paid = found.deduction_LK[k + 1, k]
        evidence(
            f"attention to the edge {k} above the goal", measured=paid, equals=1, tolerance=1e-5
        )
    for k in range(4):
        after = found.probe_LK[k:, k].min()
        evidence(f"probe {k} above the goal, from layer {k} on", measured=after, at_least=1)
    before = torch.stack([found.probe_LK[:k, k].max() for k in range(1, 4)])
    evidence("the same before that layer, largest", measured=before.max(), at_most=2 / 16)
    near, far = ([a for d, a in found.accuracy.items() if (d < layers) == n] for n in (True, False))
    assert len(near) == layers - 1
    assert len(far) >= 3
    evidence("accuracy for goals at most L - 1 away, least", measured=min(near), at_least=1)
    evidence("accuracy for goals further away", measured=max(far), equals=0.5, tolerance=0.01)
    moved, unrelated = edge_swaps(backward_chainer(16, layers), trees, "resid_post.0")
    evidence("patched edge to the goal moves the step", measured=moved, at_least=1)
    evidence("another patched edge moves the step", measured=unrelated, at_most=0)


def trained(num_steps: int = 750, batch: int = 48, rate: float = 5e-3) -> Model:
    """A network of 4 layers, trained to say the path.

    It has four heads in each layer and embeddings that are large beside the other weights: with
    one head, or small embeddings, goals two edges away take over twice as many steps.
    """
    net = toy(NODES + 2, 4, 4, 64, 3 * NODES + 1, mlp=64, norm=True, scale=True)
    for table in (net.transformer.wte, net.transformer.wpe):
        table.weight.data.mul_(5)
    optimizer = torch.optim.Adam(net.parameters(), rate, betas=(0.9, 0.98), fused=True)
    pace = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / 50, 1, 2.5 * (1 - i / num_steps) + 0.02)
    )
    for step in range(num_steps):
        trees = draw_trees(batch, NODES, DEPTH, seed=step)
        logits = net(trees.tokens_BT[:, : trees.start + DEPTH]).logits[:, trees.start :]
        wanted = trees.path_BS[:, 1 : DEPTH + 1]
        loss = cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        pace.step()
    return Model(net)


@pytest.mark.slow
@pytest.mark.paper("mechanistic-analysis-transformer-trained")
def test_edges_of_a_trained_network(evidence: Evidence) -> None:
    model = trained()
    trees: Trees = draw_trees(500, NODES, DEPTH, seed=10**6)
    accuracy = path_accuracy(model, trees)
    evidence("trained: accuracy two edges away", measured=accuracy[2], at_least=0.9)
    moved, unrelated = edge_swaps(model, trees, "resid_post.0")
    evidence("trained: patched edge to the goal moves the step", measured=moved, at_least=0.7)
    evidence("trained: another patched edge moves the step", measured=unrelated, at_most=0.1)
