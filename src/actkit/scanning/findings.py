"""What the readings of a scan say, in sentences and figures.

Each function takes the labels of the layers, their finished readings (at least one, each with
rows) and what shows a token as text. Both the numbers and the claim of a sentence are computed.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from math import isnan, log, nan
from statistics import median
from typing import Any

from actkit.read.streaming.massive import Massive, MassiveResult
from actkit.read.streaming.moments import MomentsResult
from actkit.read.streaming.sinks import Sinks, SinksResult
from actkit.read.streaming.sparsity import SparsityResult
from actkit.read.streaming.spectrum import SpectrumResult
from actkit.scanning.format import count, listed, number, percent
from actkit.scanning.report import Figure

Decode = Callable[[int], str] | None
Told = tuple[list[str], list[Figure]]
SELDOM = 1e-4
"""Share below which activations that are exactly zero do not count."""
ROWS_PER_DIMENSION = 4
"""Below this, a rank says more about the number of rows than about the layer."""


def size(names: Sequence[str], results: Sequence[MomentsResult], _: Decode) -> Told:
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
        "Length of a vector", names, "L2 norm",
        {"mean": means, "longest": [r.norm_max for r in results],
         "shortest": [r.norm_min for r in results]},
        log=max(means) > 20 * low > 0,
    )  # fmt: skip
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


def sparse(names: Sequence[str], results: Sequence[SparsityResult], _: Decode) -> Told:
    """Tell how many activations are zero or small, and how many units never fire."""
    level = results[0].levels[1]
    widths = [r.active_KD.shape[1] for r in results]
    entries = [r.num_rows * w for r, w in zip(results, widths, strict=True)]
    zeros, small = ([r.below[k] for r in results] for k in (0, 1))
    all_zeros = sum(s * n for s, n in zip(zeros, entries, strict=True)) / sum(entries)
    all_small = small_share(results)
    if max(zeros) == 0:
        findings = ["No activation is exactly zero."]
    elif all_zeros < SELDOM:
        findings = [f"Fewer than {percent(SELDOM)} of activations are exactly zero."]
    else:
        findings = [f"{percent(all_zeros)} of activations are exactly zero{_range(names, zeros)}."]
    findings.append(
        f"{percent(all_small)} of activations are at most {level:g} in size{_range(names, small)}."
    )
    findings.append(_dead(names, [r.num_dead[1] for r in results], sum(widths), level))
    figure = figure_of(
        "Small activations", names, "share of all",
        {f"at most {level:g} in size": small, "exactly zero": zeros}, percent=True,
    )  # fmt: skip
    return findings, [figure]


def small_share(results: Sequence[SparsityResult]) -> float:
    """Return the share of all activations that are small; layers count by their entries."""
    entries = [r.num_rows * r.active_KD.shape[1] for r in results]
    held = sum(r.below[1] * n for r, n in zip(results, entries, strict=True))
    return held / sum(entries)


def _dead(names: Sequence[str], dead: Sequence[int], num_units: int, level: float) -> str:
    total, most = sum(dead), max(dead)
    if not total:
        return f"Every one of {count(num_units, 'unit')} exceeds {level:g} in size on this data."
    where = ""
    if len(dead) > 1:
        share = "" if total == 1 else "all " if total == most else f"{most:,} of them "
        where = f", {share}at layer {names[dead.index(most)]}"
    if most == 1 < total:
        where = ", no two at one layer"
    verb = "exceeds" if total == 1 else "exceed"
    units = count(num_units, "unit")
    return f"{total:,} of {units} never {verb} {level:g} in size on this data{where}."


def _range(names: Sequence[str], shares: Sequence[float]) -> str:
    """Return where shares are lowest and highest, "" if they read alike."""
    low, high = min(shares), max(shares)
    if percent(low) == percent(high):
        return ""
    return (
        f", from {percent(low)} at layer {names[shares.index(low)]} to {percent(high)} at layer "
        f"{names[shares.index(high)]}"
    )


def dominant(names: Sequence[str], results: Sequence[MassiveResult], decode: Decode) -> Told:
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
        "Largest activation against the median", names, "size",
        {"largest": [abs(r.top[0].value) for r in results],
         "median": [r.median for r in results]},
        log=True,
    )  # fmt: skip
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


def dimensions(names: Sequence[str], results: Sequence[SpectrumResult], _: Decode) -> Told:
    """Tell how many dimensions the rows spread over."""
    ranks = [r.effective_rank for r in results]
    widths = [len(r.eigenvalues_D) for r in results]
    shares = [a / b for a, b in zip(ranks, widths, strict=True)]
    low, high = shares.index(min(shares)), shares.index(max(shares))
    lowest, highest = (f"{number(ranks[i])} of {widths[i]:,}" for i in (low, high))
    everywhere = "every layer" if len(names) > 1 else f"layer {names[0]}"
    findings = [f"The effective rank is {lowest} dimensions at {everywhere}."]
    if lowest != highest:
        findings = [
            f"The effective rank runs from {percent(shares[low])} of the width at layer "
            f"{names[low]} ({lowest} dimensions) to {percent(shares[high])} at layer "
            f"{names[high]} ({highest})."
        ]
    varied = [(r.share_first, n) for r, n in zip(results, names, strict=True) if r.num_90]
    if varied:
        share, name = max(varied)
        findings.append(
            f"One direction holds up to {percent(share)} of the variance (layer {name}); 90% of "
            f"it takes {_span(r.num_90 for r in results if r.num_90)}."
        )
    if len(varied) < len(results):
        findings.append(f"At {count(len(results) - len(varied), 'layer')} all rows are equal.")
    few = sum(r.num_rows < ROWS_PER_DIMENSION * w for r, w in zip(results, widths, strict=True))
    if few:
        findings.append(
            f"{count(few, 'layer')} had fewer than {ROWS_PER_DIMENSION} rows for each dimension, "
            "which makes these numbers too low there."
        )
    figure = figure_of(
        "Dimensions in use", names, "number",
        {"effective rank": ranks, "RankMe": [r.rankme for r in results],
         "directions for 90%": [r.num_90 for r in results]},
    )  # fmt: skip
    return findings, [figure]


def median_rank(results: Sequence[SpectrumResult]) -> float:
    """Return the effective rank as a share of the width, in the median layer."""
    return median(r.effective_rank / len(r.eigenvalues_D) for r in results)


def _span(numbers: Iterable[int]) -> str:
    found = sorted(numbers)
    if found[0] == found[-1]:
        return count(found[0], "direction")
    return f"{found[0]} to {count(found[-1], 'direction')}"


def rests(names: Sequence[str], results: Sequence[SinksResult], _: Decode) -> Told:
    """Tell how much attention rests on the first token, and how focused it is."""
    masses = [r.first_H.tolist() for r in results]
    heads = [x for m in masses for x in m]
    means = [sum(m) / len(m) for m in masses]
    num_sinks = sum(x > Sinks.threshold for x in heads)
    sinks = f"{num_sinks} of {count(len(heads), 'head')}" if num_sinks else "No head"
    findings = [
        f"{percent(resting(results))} of attention rests on the first token{_range(names, means)}.",
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
            "Attention on the first token", names, "share",
            {"mean of the heads": means, "most of any head": [max(m) for m in masses]},
            percent=True,
        ),
        figure_of("The same, head by head", names, "share", rows, percent=True, kind="map"),
    ]  # fmt: skip
    return findings, figures


def resting(results: Sequence[SinksResult]) -> float:
    """Return the share of attention that rests on the first token; heads count alike."""
    heads = [x for r in results for x in r.first_H.tolist()]
    return float(sum(heads) / len(heads))


def figure_of(
    title: str,
    names: Sequence[str],
    unit: str,
    series: Mapping[str, Sequence[float]],
    **how: Any,
) -> Figure:
    """Return a figure over layers; the first series is what is drawn of other networks too."""
    values = {name: tuple(map(float, v)) for name, v in series.items()}
    return Figure(
        **{"kind": "lines", **how},
        title=title,
        x=tuple(names),
        x_title="layer",
        y_title=unit,
        series=values,
    )
