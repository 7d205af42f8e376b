"""How much attention rests on the first token, and how focused it is."""

from collections.abc import Sequence
from math import isnan, nan

from actkit.read.streaming.sinks import Sinks, SinksResult
from actkit.scanning.format import count, percent
from actkit.scanning.questions._base import Decode, Question, Told
from actkit.scanning.questions._shared import figure_of, from_lowest_to_highest


def tell(names: Sequence[str], results: Sequence[SinksResult], _: Decode) -> Told:
    """Tell how much attention rests on the first token, and how focused it is."""
    masses = [r.first_H.tolist() for r in results]
    heads = [x for m in masses for x in m]
    means = [sum(m) / len(m) for m in masses]
    num_sinks = sum(x > Sinks.threshold for x in heads)
    sinks = f"{num_sinks} of {count(len(heads), 'head')}" if num_sinks else "No head"
    span = from_lowest_to_highest(names, means)
    findings = [
        f"{percent(value(results))} of attention rests on the first token{span}.",
        f"{sinks} {'gives' if num_sinks < 2 else 'give'} it more than {percent(Sinks.threshold)}.",
    ]
    evenness = {n: float(r.spread_H.mean()) for n, r in zip(names, results, strict=True)}
    evenness = {n: x for n, x in evenness.items() if not isnan(x)}
    if evenness:
        focused = min(evenness, key=evenness.__getitem__)
        findings.append(
            f"Attention is most focused at layer {focused}, where its entropy is "
            f"{percent(evenness[focused])} of that of even attention."
        )
    most = max(map(len, masses))
    rows = {f"head {h}": [m[h] if h < len(m) else nan for m in masses] for h in range(most)}
    figures = [
        figure_of(
            "Attention on the first token",
            names,
            "share",
            {"mean of the heads": means, "most of any head": [max(m) for m in masses]},
            percent=True,
        ),
        figure_of("The same, head by head", names, "share", rows, percent=True, kind="map"),
    ]
    return findings, figures


def value(results: Sequence[SinksResult]) -> float:
    """Return the share of attention that rests on the first token; heads count alike."""
    heads = [x for r in results for x in r.first_H.tolist()]
    return float(sum(heads) / len(heads))


QUESTION = Question(
    order=50,
    key="sinks",
    text="Where does attention rest?",
    kind="attention",
    reading=Sinks,
    tell=tell,
    value=value,
    what="attention on the first token",
    percent=True,
    note=f"Queries from position {Sinks.min_position} on. Entropy is relative to even "
    "attention over the keys that a query sees.",
)
