"""How long vectors are, and how that changes from layer to layer."""

from collections.abc import Sequence
from itertools import pairwise
from math import log, nan
from statistics import median

from actkit.read.streaming.moments import Moments, MomentsResult
from actkit.scanning.format import number, percent
from actkit.scanning.questions._base import Decode, Question, Told
from actkit.scanning.questions._shared import WITHOUT_FIRST, figure_of


def tell(names: Sequence[str], results: Sequence[MomentsResult], _: Decode) -> Told:
    """Tell how long vectors are, and how that changes from layer to layer."""
    means = [r.norm_mean for r in results]
    findings = [_change(names, means)]
    steps = {i: b / a for i, (a, b) in enumerate(pairwise(means)) if a > 0 and b > 0}
    at = max(steps, key=lambda i: abs(log(steps[i])), default=0)
    if len(steps) > 1 and number(steps[at]) != "1":
        findings.append(
            f"The largest change from one layer to the next is by a factor of "
            f"{number(steps[at])}, from layer {names[at]} to {names[at + 1]}."
        )
    spread = {
        n: r.norm_std / r.norm_mean for n, r in zip(names, results, strict=True) if r.norm_mean
    }
    if spread:
        most = max(spread, key=spread.__getitem__)
        usual = f"; in the median layer it is {percent(median(spread.values()))}"
        findings.append(
            f"Lengths vary most at layer {most}: their standard deviation is "
            f"{percent(spread[most])} of their mean{usual if len(spread) > 1 else ''}."
        )
    low = min((m for m in means if m > 0), default=0.0)
    figure = figure_of(
        "Length of a vector",
        names,
        "L2 norm",
        {
            "mean": means,
            "longest": [r.norm_max for r in results],
            "shortest": [r.norm_min for r in results],
        },
        log=max(means) > 20 * low > 0,
    )
    return findings, [figure]


def _change(names: Sequence[str], means: Sequence[float]) -> str:
    first, last = number(means[0]), number(means[-1])
    if len(means) == 1:
        return f"The mean length of a vector at layer {names[0]} is {first}."
    if first == last:
        return f"The mean length of a vector is {first} at layer {names[0]} and {names[-1]} alike."
    word = "grows" if means[-1] > means[0] else "shrinks"
    factor = f", a factor of {number(means[-1] / means[0])}" if means[0] > 0 else ""
    return (
        f"The mean length of a vector {word} from {first} at layer {names[0]} to {last} at layer "
        f"{names[-1]}{factor}."
    )


def value(results: Sequence[MomentsResult]) -> float:
    """Return the mean length after the last layer over that after the first."""
    if len(results) < 2:
        return nan
    first, last = results[0].norm_mean, results[-1].norm_mean
    return float(last / first) if first else nan


QUESTION = Question(
    order=10,
    key="size",
    text="How big are activations?",
    kind="stream",
    reading=Moments,
    tell=tell,
    value=value,
    what="mean length after the last layer / after the first",
    texts=WITHOUT_FIRST,
)
