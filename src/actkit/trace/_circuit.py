"""Circuits: sets of parts by their entries in the scores, with or without classes."""

from collections.abc import Collection, Mapping

Node = tuple[int, ...]
"""A part's entry in the scores: (layer, head), (layer, position), (layer, position, head), ..."""
Circuit = Mapping[str, Collection[Node]] | Collection[Node]


def by_class(circuit: Circuit) -> dict[str, frozenset[Node]]:
    """Return the parts of each class; one class for a circuit without."""
    given = circuit if isinstance(circuit, Mapping) else {"all": circuit}
    return {name: frozenset(tuple(node) for node in nodes) for name, nodes in given.items()}


def nodes(circuit: Circuit) -> frozenset[Node]:
    """Return the parts of all classes."""
    return frozenset[Node]().union(*by_class(circuit).values())
