"""How much of the stream goes on from layer to layer, and how fast it moves."""

from collections.abc import Sequence
from statistics import fmean

from actkit.read.streaming.stream_dynamics import StreamDynamics, StreamDynamicsResult
from actkit.scanning.format import number
from actkit.scanning.questions._base import Decode, Question, Told
from actkit.scanning.questions._shared import WITHOUT_FIRST, figure_of


def tell(names: Sequence[str], results: Sequence[StreamDynamicsResult], _: Decode) -> Told:
    """Tell how much of the stream goes on from layer to layer, and how fast it moves."""
    (result,) = results
    same, other = (x.nanmean(1).tolist() for x in (result.correlation_PD, result.control_PD))
    velocity = result.velocity_P.tolist()
    fast, slow = velocity.index(max(velocity)), velocity.index(min(velocity))
    findings = [
        f"A unit's value before a layer and after it correlate by {number(value(results))} "
        f"over tokens; with another unit's by {number(fmean(other))}.",
        f"The state moves farthest at layer {names[fast]} (a step of {number(velocity[fast])}) "
        f"and least at layer {names[slow]} ({number(velocity[slow])}).",
        f"The cosine between a token's states before and after a layer is "
        f"{number(float(result.cosine_P.mean()))} in the mean, lowest at layer "
        f"{names[int(result.cosine_P.argmin())]} ({number(float(result.cosine_P.min()))}).",
    ]
    figure = figure_of(
        "Correlation of a unit with itself one layer before",
        names,
        "Pearson r",
        {"the same unit": same, "another unit": other},
    )
    steps = figure_of(
        "Length of a step",
        names,
        "L2 norm",
        {"mean over tokens": velocity},
        log=max(velocity) > 20 * min(velocity) > 0,
    )
    return findings, [figure, steps]


def value(results: Sequence[StreamDynamicsResult]) -> float:
    """Return the mean correlation of units with themselves one layer before; layers count alike."""
    return fmean(results[0].correlation_PD.nanmean(1).tolist())


QUESTION = Question(
    order=80,
    key="dynamics",
    text="How does the stream move?",
    kind="path",
    reading=StreamDynamics,
    tell=tell,
    value=value,
    what="correlation of a unit with itself one layer before",
    texts=WITHOUT_FIRST,
)
