"""Which units hold the largest activations, where, and whether they are massive."""

from collections import Counter
from collections.abc import Sequence

from actkit.read.streaming.massive import Massive, MassiveResult
from actkit.scanning.format import count, listed, number
from actkit.scanning.questions._base import Decode, Question, Told
from actkit.scanning.questions._shared import figure_of


def tell(names: Sequence[str], results: Sequence[MassiveResult], decode: Decode) -> Told:
    """Tell which units hold the largest activations, where, and whether they are massive."""
    ratios = [r.ratios[0] for r in results]
    at = ratios.index(max(ratios))
    peak = results[at].top[0]
    token = f", token {decode(peak.token)!r}" if decode is not None and peak.token >= 0 else ""
    against = f"{number(ratios[at])} times the median size there"
    findings = [
        f"Against the rest of its layer, the largest activation is {number(peak.value)} in unit "
        f"{peak.unit} at layer {names[at]} (sample {peak.sample:,}, position {peak.position:,}"
        f"{token}): {against if results[at].median else 'the median size there is 0'}."
    ]
    if not peak.value:
        findings = ["Every activation is 0."]
    unit, times = Counter(r.top[0].unit for r in results).most_common(1)[0]
    if 2 * times > len(results) > 1 and peak.value:
        findings.append(
            f"Unit {unit} holds the largest activation of {times} of {len(results)} layers."
        )
    findings.append(_massive(names, results))
    figure = figure_of(
        "Largest activation against the median",
        names,
        "size",
        {"largest": [abs(r.top[0].value) for r in results], "median": [r.median for r in results]},
        log=True,
    )
    return findings, [figure]


def _massive(names: Sequence[str], results: Sequence[MassiveResult]) -> str:
    rule = f"over {number(Massive.floor)} and at least {number(Massive.ratio)} times the median"
    held = [i for i, r in enumerate(results) if r.num_massive]
    if not held:
        return f"No activation is massive ({rule})."
    units = sorted({u for i in held for u in results[i].massive_units})
    places = sorted({results[i].top[0].position for i in held})
    span = f"layer {names[held[0]]}"
    if len(held) > 1:
        gaps = held[-1] - held[0] >= len(held)
        span = f"layers {names[held[0]]} to {names[held[-1]]}{' with gaps' if gaps else ''}"
    return (
        f"{len(held)} of {count(len(results), 'layer')} {'hold' if len(held) > 1 else 'holds'} "
        f"massive activations ({rule}): {span}, {'unit' if len(units) == 1 else 'units'} "
        f"{listed(units)}, the largest of each layer at position {listed(places)}."
    )


def value(results: Sequence[MassiveResult]) -> float:
    """Return the largest of the layers' ratios: an activation against its layer's median."""
    return max(float(r.ratios[0]) for r in results)


QUESTION = Question(
    order=30,
    key="massive",
    text="Which units dominate?",
    kind="stream",
    reading=Massive,
    tell=tell,
    value=value,
    what="largest activation / median of its layer",
    texts="All tokens, the first one too: massive activations live there.",
)
