"""The mathematics of IIT 3.0: repertoires, concepts and distances of constellations.

Shapes: S = 2^n states, n units. Repertoires are arrays with one axis of length 2 for each unit of
their purview and of length 1 for the others.
"""

from dataclasses import dataclass
from functools import cache
from itertools import chain, combinations

import numpy as np
from numpy.typing import NDArray

Units = tuple[int, ...]
Array = NDArray[np.float64]
_SAME = 6  # decimals to which values count as equal


@dataclass(frozen=True, slots=True)
class PhiConcept:
    """What one mechanism, a set of units in their state, says of past and future.

    Attributes:
        mechanism: Its units.
        phi: Its integrated information, the smaller of that of cause and effect.
        cause: Units of its core cause.
        effect: Units of its core effect.
    """

    mechanism: Units
    phi: float
    cause: Units
    effect: Units


class System:
    """Units in a state, under a cut or none, and the repertoires of their mechanisms.

    Attributes:
        units: 0 to n - 1.
    """

    def __init__(self, on: list[Array], state: Units) -> None:
        """Take for each unit P(on) by the past values of all n units, an array of n axes."""
        self.units: Units = tuple(range(len(on)))
        self._on, self._state = on, state
        self._known: dict[tuple[str, Units, Units], Array] = {}

    def reachable(self) -> bool:
        """Return whether some past state can lead to the state."""
        return bool(np.prod([self._now(m, ()) for m in self.units], 0).any())

    def _now(self, unit: int, unseen: Units) -> Array:
        """Return P(unit's current value | past), the mean over units that are not seen."""
        on: Array = self._on[unit].mean(unseen, keepdims=True)
        return on if self._state[unit] else 1 - on

    def cut(self, source: Units, target: Units) -> "System":
        """Return the system in which the target hears noise instead of the source."""
        noisy = [np.broadcast_to(on.mean(source, keepdims=True), on.shape) for on in self._on]
        on = [noisy[i] if i in target else self._on[i] for i in self.units]
        return System(on, self._state)

    def repertoire(self, side: str, mechanism: Units, purview: Units) -> Array:
        """Return the distribution over a purview's past ("cause") or future ("effect") states."""
        key = (side, mechanism, purview)
        if key not in self._known:
            make = self._cause if side == "cause" else self._effect
            self._known[key] = make(mechanism, purview)
        return self._known[key]

    def _cause(self, mechanism: Units, purview: Units) -> Array:
        """Return p(past purview) in proportion to the product of p(unit's state | past)."""
        rest = tuple(i for i in self.units if i not in purview)
        joint: Array = np.ones([2 if i in purview else 1 for i in self.units])
        for m in mechanism:
            joint = joint * self._now(m, rest)
        joint /= joint.sum()
        return joint

    def _effect(self, mechanism: Units, purview: Units) -> Array:
        """Return the product of p(unit's next value | mechanism's state)."""
        seen = tuple(self._state[i] if i in mechanism else slice(None) for i in self.units)
        joint = np.ones((1,) * len(self.units))
        for p in purview:
            on = self._on[p][seen].mean()
            joint = joint * np.array([1 - on, on]).reshape([2 if i == p else 1 for i in self.units])
        return joint

    def constellation(self) -> list[tuple[PhiConcept, Array]]:
        """Return the concepts, each with its cause and effect over all units, one after another."""
        found = []
        for mechanism in subsets(self.units):
            cores = [self._core(side, mechanism) for side in ("cause", "effect")]
            phi = min(core[0] for core in cores)
            if round(phi, _SAME) > 0:
                concept = PhiConcept(mechanism, phi, cores[0][1], cores[1][1])
                found.append((concept, self.point(mechanism, concept.cause, concept.effect)))
        return found

    def point(self, mechanism: Units = (), cause: Units = (), effect: Units = ()) -> Array:
        """Return a concept's place in concept space; of nothing, the null concept's."""
        both = []
        for side, purview in (("cause", cause), ("effect", effect)):
            rest = tuple(i for i in self.units if i not in purview)
            free = self.repertoire(side, (), rest)
            both.append((self.repertoire(side, mechanism, purview) * free).ravel())
        return np.stack(both)

    def _core(self, side: str, mechanism: Units) -> tuple[float, Units]:
        """Return the phi of the purview that a mechanism constrains most irreducibly."""
        found = ((self._phi(side, mechanism, p), p) for p in subsets(self.units))
        return max(found, key=lambda core: (round(core[0], _SAME), len(core[1])))

    def _phi(self, side: str, mechanism: Units, purview: Units) -> float:
        """Return the least distance between a repertoire and one of two independent parts."""
        whole = self.repertoire(side, mechanism, purview)
        parts = [  # half of the mechanism's divisions: the others swap the parts
            self.repertoire(side, m1, p1) * self.repertoire(side, m2, p2)
            for m1, m2 in splits(mechanism)[: 2 ** (len(mechanism) - 1)]
            for p1, p2 in splits(purview)
            if m1 + p1 and m2 + p2
        ]
        return float(_distance(np.stack(parts) - whole).min())


@cache
def subsets(units: Units) -> tuple[Units, ...]:
    """Return all sets of units but the empty one, smaller ones first."""
    sizes = range(1, len(units) + 1)
    return tuple(chain.from_iterable(combinations(units, size) for size in sizes))


@cache
def splits(units: Units) -> tuple[tuple[Units, Units], ...]:
    """Return every division in a first and a second part, empty ones too."""
    firsts = ((), *subsets(units))
    return tuple((part, tuple(i for i in units if i not in part)) for part in firsts)


@cache
def _slopes(num: int) -> Array:
    """Return every f on the states of `num` units that is 0 at 0 and differs by 1 along edges."""
    if not num:
        return np.zeros((1, 1))
    half = _slopes(num - 1)
    pairs = [(f, g + c) for f in half for g in half for c in (1, -1)]
    return np.stack([np.concatenate(p) for p in pairs if (abs(p[0] - p[1]) == 1).all()])


def _distance(difference: Array) -> Array:
    """Return the earth mover's distance, whose ground distance counts the units that differ.

    It is the largest mean difference of any function that changes by at most 1 with one unit
    (Kantorovich's dual); `_slopes` are the corners of these functions.
    """
    size = difference[0].size
    flat = difference.reshape(-1, size)
    distance: Array = (flat @ _slopes(size.bit_length() - 1).T).max(1)
    return distance


def moved(
    whole: list[tuple[PhiConcept, Array]], cut: list[tuple[PhiConcept, Array]], system: System
) -> float:
    """Return the least work that turns a constellation into another one.

    Concepts carry their phi over the sum of the distances of their causes and of their effects;
    what one side has in excess goes to the null concept.
    """
    from scipy.optimize import linprog

    sides = []
    for own, other in ((whole, cut), (cut, whole)):
        mass = [c.phi for c, _ in own]
        excess = sum(c.phi for c, _ in other) - sum(mass)
        points = [p for _, p in own]
        sides.append(([*mass, max(excess, 0.0)], [*points, system.point()]))
    (have, start), (want, end) = sides
    work = [[_distance(a - b).sum() for b in end] for a in start]
    rows = np.kron(np.eye(len(have)), np.ones(len(want)))
    columns = np.kron(np.ones(len(have)), np.eye(len(want)))
    found = linprog(np.ravel(work), A_eq=np.vstack([rows, columns])[:-1], b_eq=[*have, *want][:-1])
    return float(found.fun)
