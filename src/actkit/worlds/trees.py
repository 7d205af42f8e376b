"""Path finding in trees: prompts of shuffled edges, a goal and a root.

A prompt is "A B A C ... | goal : root ..." with one token for each node: first all edges, parent
before child, then the goal, and then the path from the root to it, which is to be continued.

Shapes: B trees, N nodes (also their names 0 .. N-1), T tokens, S steps of the path.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.core.errors import InputError


@dataclass(frozen=True)
class Trees:
    """Trees as prompts, by the names of their nodes.

    Attributes:
        tokens_BT: The prompts, the whole path but its end written out; where a path is shorter
            than the longest one possible, the first node fills up.
        path_BS: The nodes from root to goal, -1 after it.
        parent_BN: Each node's parent, -1 for the root.
        edge_BN: The position of the token that names each node as a child, -1 for the root.
    """

    tokens_BT: Tensor
    path_BS: Tensor
    parent_BN: Tensor
    edge_BN: Tensor

    def __len__(self) -> int:
        """Return the number of trees."""
        return len(self.tokens_BT)

    def __getitem__(self, index: Tensor) -> "Trees":
        """Return some of the trees."""
        return Trees(*(value[index] for value in vars(self).values()))

    @property
    def start(self) -> int:
        """Return the position of the root, after which the path is to be said."""
        return 2 * self.parent_BN.shape[1] + 1

    @property
    def depth(self) -> Tensor:
        """Return the number of edges from root to goal, (B,)."""
        return (self.path_BS >= 0).sum(-1) - 1

    def ancestor(self, k: int) -> Tensor:
        """Return the node k edges above the goal, (B,); -1 where the root is passed."""
        index = self.depth - k
        found = self.path_BS.gather(1, index.clamp_min(0)[:, None])[:, 0]
        return found.where(index >= 0, -1)


def draw_trees(num: int, num_nodes: int = 16, max_depth: int | None = None, seed: int = 0) -> Trees:
    """Draw binary trees whose roots fork: each further node hangs on a random one with room.

    Names and the order of edges are shuffled; the goal is a random leaf.

    Args:
        num: How many.
        num_nodes: At least 3.
        max_depth: The most edges from the root to a leaf.
        seed: Of the draw.

    Example:
        >>> draw_trees(5, num_nodes=8, seed=1).tokens_BT.shape[0]
        5
    """
    depth = num_nodes if max_depth is None else max_depth
    if num_nodes < 3 or num_nodes > 2 ** min(depth + 1, 30) - 1:
        raise InputError(f"need 3 nodes at least and room for them, got {num_nodes}, {max_depth=}")
    generator, rows = torch.Generator().manual_seed(seed), torch.arange(num)
    parent = torch.full((num, num_nodes), -1)
    children, level = torch.zeros(2, num, num_nodes)
    for node in range(1, num_nodes):
        there = torch.arange(num_nodes) < (1 if node < 3 else node)
        room = (children < 2) & (level < depth) & there
        above = torch.multinomial(room.float(), 1, generator=generator)[:, 0]
        parent[:, node], level[:, node] = above, level[rows, above] + 1
        children[rows, above] += 1
    goal = torch.multinomial((children == 0).float(), 1, generator=generator)[:, 0]
    name = torch.rand(num, num_nodes, generator=generator).argsort(-1)
    order = torch.rand(num, num_nodes - 1, generator=generator).argsort(-1) + 1
    return _written(parent, name, order, goal)


def _written(parent: Tensor, name: Tensor, order: Tensor, goal: Tensor) -> Trees:
    """Write trees down: (B, N) parents and names by node, (B, N-1) children in order, goals."""
    num, num_nodes = parent.shape
    up = [goal]
    for _ in range(num_nodes - 1):
        up.append(torch.where(up[-1] < 0, -1, parent.gather(1, up[-1].clamp_min(0)[:, None])[:, 0]))
    above = torch.stack(up, 1)
    index = (above >= 0).sum(-1, keepdim=True) - 1 - torch.arange(num_nodes)
    node = above.gather(1, index.clamp_min(0)).where(index >= 0, 0)
    path = name.gather(1, node).where(index >= 0, -1)
    edges = torch.stack([name.gather(1, parent.gather(1, order)), name.gather(1, order)], -1)
    marks = torch.tensor([num_nodes, num_nodes + 1]).expand(num, 2)
    named_goal = name.gather(1, goal[:, None])
    begin = [edges.flatten(1), marks[:, :1], named_goal, marks[:, 1:]]
    tokens = torch.cat([*begin, path[:, :-1].clamp_min(0)], 1)
    by_name = torch.full_like(parent, -1)
    parents = by_name.scatter(1, edges[..., 1], edges[..., 0])
    place = (1 + 2 * torch.arange(num_nodes - 1)).expand(num, -1)
    return Trees(tokens, path, parents, by_name.scatter(1, edges[..., 1], place))
