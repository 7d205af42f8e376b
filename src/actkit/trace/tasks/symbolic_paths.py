"""Paths in a tree: shuffled edges "A > B, B > C, ...", a goal and the root -> the next node."""

from itertools import pairwise
from random import Random

from actkit.core.errors import InputError
from actkit.trace._task import Task
from actkit.trace.tasks._written import Row, written

PLACE = 8

NODES = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def symbolic_paths(
    num: int = 20,
    seed: int = 0,
    depth: int = 2,
    branches: int = 2,
    metric: str = "logit difference",
) -> Task:
    """Paths in a tree: shuffled edges "A > B, B > C, ...", a goal and the root -> the next node.

    The root is the only node with several children, each the start of a chain of `depth` edges;
    the goal ends one of them, and the corrupt goal another. Small networks need to be trained
    for it; SmolLM2 guesses.

    Args:
        num: How many pairs.
        seed: Of the nodes and the order of edges.
        depth: Edges from the root to a goal.
        branches: How many chains; with `depth` at most 25 nodes besides the root.
        metric: As in `Task`.
    """
    if depth < 1 or branches < 2 or depth * branches >= len(NODES):
        raise InputError(
            "a tree needs depth >= 1, branches >= 2 and at most 25 nodes besides the root, "
            f"got depth {depth} and {branches} branches"
        )

    def write(rng: Random) -> Row:
        root, *nodes = rng.sample(NODES, 1 + depth * branches)
        chains = [[root, *nodes[i::branches]] for i in range(branches)]
        edges = [f"{a} > {b}" for chain in chains for a, b in pairwise(chain)]
        rng.shuffle(edges)
        text = f"Edges: {', '.join(edges)}\nGoal: {{}}\nPath: {root} >"
        clean, corrupt = (text.format(chain[-1]) for chain in chains[:2])
        return Row(clean, corrupt, *(f" {chain[1]}" for chain in chains[:2]))

    return written(num, seed, write, "symbolic paths", metric)
