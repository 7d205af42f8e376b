"""Hold a network that finds paths in trees against backward chaining from the goal.

Shapes: B trees, T tokens, S steps of a path, L layers, K steps backwards, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.edits.edit import Edit, swap
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace._base import Analysis
from actkit.worlds.trees import Trees

TIE = 1e-3
"""Logits that differ by less are as large."""


@dataclass(frozen=True)
class Mechanism:
    """What was found of backward chaining.

    Attributes:
        accuracy: For each distance to the goal the share of right steps from nodes that fork.
        deduction_LK: The attention that the root's token pays in each layer to the edge that
            leads to the node k edges above the goal, k = 0, 1, ...; mean over trees.
        probe_LK: Accuracy of a linear probe for the node k edges above the goal in the root's
            token after each layer, on trees that it was not fitted on.
        chance_K: The same of always saying the most frequent node.
    """

    accuracy: dict[int, float]
    deduction_LK: Tensor
    probe_LK: Tensor
    chance_K: Tensor


@method(source="Brinkmann et al. 2024, arXiv:2402.11917, backward chaining", interface=Analysis)
def tree_path(model: Model, trees: Trees, num_steps: int = 3) -> Mechanism:
    """Hold a network that continues paths in trees against backward chaining.

    As in the paper, where the network has one head in each layer; of several the largest
    attention counts. Trees whose node k edges above the goal is the root, which the prompt
    names, are left out of that step, so that chance is one in about as many as there are nodes.

    Args:
        model: The network.
        trees: Of `draw_trees`; half of them fit the probes.
        num_steps: How many edges above the goal to look for.

    Raises:
        InputError: Fewer than two goals are that far away.

    Example:
        >>> from actkit.worlds import backward_chainer
        >>> from actkit.worlds import draw_trees
        >>> found = tree_path(backward_chainer(8, layers=4), draw_trees(64, 8), num_steps=2)
        >>> found.accuracy[1], found.accuracy[3]
        (1.0, 1.0)
    """
    stream, probs = (
        [site.name for site in model.sites(point)] for point in ("resid_post.*", "attn_probs.*")
    )
    rec = model.run(trees.tokens_BT, [*stream, *probs])
    deduction, probe, chance = [], [], []
    for k in range(num_steps):
        rows = (trees.depth > k).nonzero()[:, 0]
        if len(rows) < 2:
            raise InputError(f"need 2 trees with goals over {k} edges away, got {len(rows)}")
        node = trees.ancestor(k)[rows]
        place = trees.edge_BN[rows, node]
        paid = [rec[site].cpu()[rows, :, trees.start, place].amax(-1).mean() for site in probs]
        read = [_probed(rec[site][:, trees.start].cpu()[rows], node) for site in stream]
        deduction.append(torch.stack(paid))
        probe.append(torch.tensor(read))
        chance.append(float(node.bincount().max() / len(node)))
    return Mechanism(
        path_accuracy(model, trees),
        torch.stack(deduction, 1),
        torch.stack(probe, 1),
        torch.tensor(chance),
    )


def path_accuracy(model: Model, trees: Trees) -> dict[int, float]:
    """Return the share of right next nodes by distance to the goal, from nodes with two children.

    A step counts as right if the right child has a larger logit than its sibling, as half right
    if they are as large.
    """
    now, then = trees.path_BS[:, :-1], trees.path_BS[:, 1:]
    said_BSN = _said(model, trees)
    names = torch.arange(said_BSN.shape[-1])
    sibling = (trees.parent_BN[:, None] == now[..., None]) & (names != then[..., None])
    right = said_BSN.gather(-1, then.clamp_min(0)[..., None])
    lead = right - said_BSN.masked_fill(~sibling, -torch.inf).amax(-1, keepdim=True)
    score = torch.where(lead.abs() < TIE, 0.5, (lead > 0).float())[..., 0]
    fork = sibling.any(-1) & (then >= 0)
    distance = trees.depth[:, None] - torch.arange(now.shape[1])
    return {
        d: float(score[fork & (distance == d)].mean()) for d in sorted(set(distance[fork].tolist()))
    }


def patched_step(
    model: Model, trees: Trees, donor_BT: Tensor, site: str, mask_BT: Tensor
) -> Tensor:
    """Return the first nodes said, (B,), where a site's activations come from other prompts.

    Args:
        model: The network.
        trees: The prompts.
        donor_BT: Other prompts of the same length.
        site: Such as "resid_post.0".
        mask_BT: Which tokens are taken from the donors: an edge's, or those of registers.
    """
    rec = model.run(donor_BT, record=site)
    return _said(model, trees, [swap(site, rec, Where(tokens=mask_BT))])[:, 0].argmax(-1)


def edge_swaps(model: Model, trees: Trees, site: str) -> tuple[float, float]:
    """Patch one edge from a tree in which the goal is a grandchild of the root the other way.

    The donor is the same tree with the subtrees of the root's two children exchanged, so that
    the edge to the goal comes from the root's other child. Only trees whose goal is two edges
    away, and that have another edge which the exchange changes, take part.

    Raises:
        InputError: No tree takes part.

    Returns:
        The share of first steps that lead to the other child where the edge to the goal is
        patched, and where another edge is.
    """
    trees = trees[trees.depth == 2]
    root, child, goal = trees.path_BS[:, :3].unbind(1)
    names = torch.arange(trees.parent_BN.shape[1])
    other = ((trees.parent_BN == root[:, None]) & (names != child[:, None])).long().argmax(-1)
    changed = (trees.parent_BN == child[:, None]) | (trees.parent_BN == other[:, None])
    unrelated = changed & (names != goal[:, None])
    keep = unrelated.any(-1)
    if not keep.any():
        raise InputError(f"need trees whose goal is two edges away, got none of {len(trees)}")
    donor = trees.tokens_BT.clone()
    sources = donor[:, : trees.start - 3 : 2]
    of_child, of_other = sources == child[:, None], sources == other[:, None]
    sources += of_child * (other - child)[:, None] + of_other * (child - other)[:, None]

    def moved(node_B: Tensor) -> float:
        mask = torch.arange(donor.shape[1]) == trees.edge_BN.gather(1, node_B[:, None])
        step = patched_step(model, trees, donor, site, mask)
        return float((step == other)[keep].float().mean())

    return moved(goal), moved(unrelated.long().argmax(-1))


def _said(model: Model, trees: Trees, edits: Sequence[Edit] = ()) -> Tensor:
    """Return the logits of the nodes along the path, (B, S, N), from the root on."""
    logits = model.run(trees.tokens_BT, edits=edits, logits=True).logits
    return logits[:, trees.start :, : trees.parent_BN.shape[1]].cpu()


def _probed(x_BD: Tensor, node_B: Tensor) -> float:
    """Return the accuracy on the second half of least squares fitted on the first."""
    half = len(node_B) // 2
    x = torch.cat([x_BD.double(), torch.ones(len(x_BD), 1).double()], 1)
    target = torch.nn.functional.one_hot(node_B).double()
    gram = x[:half].mT @ x[:half] + 1e-6 * half * torch.eye(x.shape[1]).double()
    weights = torch.linalg.solve(gram, x[:half].mT @ target[:half])
    return float(((x[half:] @ weights).argmax(-1) == node_B[half:]).float().mean())
