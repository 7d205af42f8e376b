"""How much of one task's circuit serves another task."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from scipy.stats import hypergeom

from actkit.catalog import method
from actkit.core.errors import InputError
from actkit.maths.statistics import spearman
from actkit.trace._base import CircuitMeasure
from actkit.trace._circuit import Circuit, Node, by_class, nodes
from actkit.trace._scores import Scores


@dataclass(frozen=True)
class Overlap:
    """What two circuits share.

    Attributes:
        overall: Share of the parts of either circuit that are in both, |A and B| / |A or B|.
        roles: The same for each role that both circuits name.
        shared: The parts in both.
        chance: What `overall` is on average for two random sets of these sizes; None if the
            number of all parts was not given.
    """

    overall: float
    roles: dict[str, float]
    shared: tuple[Node, ...]
    chance: float | None


@method(
    source="Merullo et al. 2024, arXiv:2310.08744, ICLR 2024, section 4", interface=CircuitMeasure
)
def circuit_overlap(first: Circuit, second: Circuit, num_parts: int | None = None) -> Overlap:
    """Compare two circuits by the share of their parts that both use.

    As in the paper; chance is added.

    Args:
        first: A circuit's parts, (layer, head) for heads; or such parts by role.
        second: The other one.
        num_parts: How many parts the network has, to tell what chance would share.

    Raises:
        InputError: Both circuits are empty, or larger than the network.

    Example:
        >>> ioi = {"mover": [(9, 6), (9, 9)], "inhibition": [(7, 3)]}
        >>> objects = {"mover": [(9, 9)], "inhibition": [(7, 3)]}
        >>> found = circuit_overlap(ioi, objects)
        >>> found.roles, round(found.overall, 2)
        ({'mover': 0.5, 'inhibition': 1.0}, 0.67)
    """
    a, b = nodes(first), nodes(second)
    if not a | b:
        raise InputError("an overlap needs a part in either circuit, got two empty ones")
    roles: dict[str, float] = {}
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        own, other = by_class(first), by_class(second)
        roles = {r: _jaccard(own[r], other[r]) for r in own if r in other and own[r] | other[r]}
    chance = None if num_parts is None else chance_overlap(len(a), len(b), num_parts)
    return Overlap(_jaccard(a, b), roles, tuple(sorted(a & b)), chance)


def chance_overlap(num_first: int, num_second: int, num_parts: int) -> float:
    """Return the mean share that two random sets of parts have in common.

    Example:
        >>> chance_overlap(1, 1, 4)
        0.25
    """
    if not 0 < max(num_first, num_second) <= num_parts:
        raise InputError(
            f"circuits must have at most the network's {num_parts} parts and not none, "
            f"got {num_first} and {num_second}"
        )
    shared = range(min(num_first, num_second) + 1)
    odds = hypergeom(num_parts, num_first, num_second)
    return float(sum(odds.pmf(k) * k / (num_first + num_second - k) for k in shared))


def rank_correlation(first: Scores, second: Scores) -> float:
    """Return Spearman's correlation of two maps of scores, over the parts that both have.

    Raises:
        InputError: The maps are of different parts, or one is constant.
    """
    if first.values.shape != second.values.shape or first.axes != second.axes:
        raise InputError(
            f"maps must be of the same parts, got {first.axes} {tuple(first.values.shape)} and "
            f"{second.axes} {tuple(second.values.shape)}"
        )
    both = first.values.isfinite() & second.values.isfinite()
    a, b = first.values[both], second.values[both]
    if len(a) < 2 or bool((a == a[0]).all()) or bool((b == b[0]).all()):
        raise InputError(f"a rank correlation needs two maps that vary, got {len(a)} entries")
    return spearman(a, b)


def _jaccard(a: Set[Node], b: Set[Node]) -> float:
    return len(a & b) / len(a | b)
