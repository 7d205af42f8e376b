"""Hold ways of finding circuits against networks whose circuits are known."""

from collections.abc import Mapping, Sequence

from actkit.catalog import method
from actkit.trace._base import CircuitMeasure, Localizer
from actkit.trace._known_circuit import KnownCircuit
from actkit.trace.circuits.interpbench._wired import (
    wired_duplicate,
    wired_fraction,
    wired_pointer,
    wired_vote,
)


def known_circuits(seed: int = 0) -> list[KnownCircuit]:
    """Return five networks that are wired by hand, with circuits of two or three heads.

    Heads feed queries (pointers of 2 and 3 hops), keys (duplicate), values (fraction) or only the
    answer (vote); the heads outside are small noise.

    Args:
        seed: Of the noise, and of which heads are the circuit's.
    """
    return [
        wired_pointer(seed),
        wired_pointer(seed, hops=3),
        wired_duplicate(seed),
        wired_fraction(seed),
        wired_vote(seed),
    ]


@method(
    source="Gupta et al. 2024, arXiv:2407.14494, evaluation by the area under the ROC curve",
    interface=CircuitMeasure,
)
def interpbench(
    localizer: Localizer,
    circuits: Sequence[KnownCircuit] | None = None,
    num_pairs: int = 16,
    seed: int = 0,
) -> Mapping[str, float]:
    """Return the area under the ROC curve of a localizer's scores on known circuits.

    The paper scores edges; heads may be scored, too, which every localizer can do. Its networks
    are trained (as `SIIT` does); those of `known_circuits` are wired by hand and cost nothing.

    Args:
        localizer: Scores heads, `parts="heads"`, or edges between whole heads, `split_qkv=False`.
        circuits: `known_circuits(seed)` if None.
        num_pairs: Prompts, each with another one of another answer.
        seed: Of the pairs.

    Returns:
        One area for each circuit, by its program's name: 1 is perfect, 0.5 chance.

    Example:
        >>> from actkit.trace.nodes.patch import Patch
        >>> min(interpbench(Patch("heads")).values())
        1.0
    """
    circuits = known_circuits(seed) if circuits is None else circuits
    return {c.program.name: c.auc(localizer(c.model, c.task(num_pairs, seed))) for c in circuits}
