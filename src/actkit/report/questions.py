"""The five questions of a scan: which reading answers each, and how its answer is told.

A finding is a sentence whose numbers, and whose claim, follow from the readings of this scan.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from actkit.core.sites import Site
from actkit.read._base import Reading
from actkit.read.massive import Massive
from actkit.read.moments import Moments
from actkit.read.sinks import Sinks
from actkit.read.sparsity import Sparsity
from actkit.read.spectrum import Spectrum
from actkit.report.report import Figure, Page
from actkit.report.terminal import number

Decode = Callable[[int], str] | None


@dataclass(frozen=True)
class Layers:
    """The sites that questions are asked of.

    Attributes:
        stream: What flows from block to block.
        hidden: What the MLPs (or activation functions) compute inside.
        attention: Attention probabilities.
        decode: Shows a token id as text, None if there are no tokens.
    """

    stream: tuple[Site, ...]
    hidden: tuple[Site, ...]
    attention: tuple[Site, ...]
    decode: Decode = None

    def of(self, kind: str) -> tuple[Site, ...]:
        """Return the sites of one kind."""
        sites: tuple[Site, ...] = getattr(self, kind)
        return sites


@dataclass(frozen=True)
class Question:
    """A question, the sites it is asked of, the reading that answers it, and how it is told."""

    key: str
    text: str
    layers: str
    reading: Callable[[], Reading]
    tell: Callable[[list[str], list[Any], Decode], tuple[list[str], list[Figure]]]
    note: str

    def answer(self, sites: Sequence[Site], read: Sequence[Reading], decode: Decode) -> Page:
        """Return the page of this question."""
        results = [r.result() for r in read]
        names = labels([s.name for s in sites])
        findings, figures = self.tell(names, results, decode)
        lost = sum(r.num_nonfinite for r in results)
        if lost:
            findings.append(f"{lost:,} rows held NaN or infinity and were left out.")
        numbers = {s.name: r.summary() for s, r in zip(sites, results, strict=True)}
        return Page(self.key, self.text, tuple(findings), tuple(figures), numbers, self.note)


def labels(names: Sequence[str]) -> list[str]:
    """Return short names of layers: what the sites' names do not share.

    Example:
        >>> labels(["resid_post.0", "resid_post.1"]), labels(["b.0.act:out", "b.1.act:out"])
        (['0', '1'], ['0', '1'])
    """
    parts = [n.replace(":", ".").split(".") for n in names]
    if len({len(p) for p in parts}) > 1 or len(names) < 2:
        return list(names)
    differ = [i for i in range(len(parts[0])) if len({p[i] for p in parts}) > 1]
    return [".".join(p[i] for i in differ) for p in parts]


def _lines(title: str, names: list[str], y: str, log: bool, **series: list[float]) -> Figure:
    named = {k.replace("_", " "): tuple(map(float, v)) for k, v in series.items()}
    return Figure("lines", title, tuple(names), "layer", y, named, log)


def _size(names: list[str], results: list[Any], _: Decode) -> tuple[list[str], list[Figure]]:
    norms = [r.norm_mean for r in results]
    steps = [b / a for a, b in pairwise(norms)]
    word = "grows" if norms[-1] > norms[0] else "shrinks"
    findings = [
        f"The mean length of a vector {word} from {number(norms[0])} after layer {names[0]} to "
        f"{number(norms[-1])} after layer {names[-1]}, a factor of "
        f"{number(norms[-1] / norms[0])}."
    ]
    if steps:
        at = max(range(len(steps)), key=steps.__getitem__)
        findings.append(
            f"The largest step is from layer {names[at]} to {names[at + 1]}: x{number(steps[at])}."
        )
    spread = [r.norm_std / r.norm_mean for r in results]
    at = max(range(len(spread)), key=spread.__getitem__)
    findings.append(
        f"Vectors differ most in length at layer {names[at]}: their standard deviation is "
        f"{number(100 * spread[at])} % of the mean there, "
        f"{number(100 * median(spread))} % in the middle layer of this ranking."
    )
    figure = _lines(
        "Length of a vector (L2 norm)", names, "L2 norm", max(norms) > 20 * min(norms),
        mean=norms, shortest=[r.norm_min for r in results], longest=[r.norm_max for r in results],
    )  # fmt: skip
    return findings, [figure]


def _sparse(names: list[str], results: list[Any], _: Decode) -> tuple[list[str], list[Figure]]:
    zeros, small = [r.below[0] for r in results], [r.below[1] for r in results]
    level = results[0].levels[1]
    mean_zeros, mean_small = sum(zeros) / len(zeros), sum(small) / len(small)
    findings = []
    if max(zeros) < 1e-4:
        findings.append(
            f"{'Hardly an' if max(zeros) else 'No'} activation is exactly zero, so nothing can be "
            "skipped without a threshold."
        )
    else:
        at = max(range(len(zeros)), key=zeros.__getitem__)
        findings.append(
            f"{number(100 * mean_zeros)} % of activations are exactly zero; most at layer "
            f"{names[at]} with {number(100 * zeros[at])} %."
        )
    at = max(range(len(small)), key=small.__getitem__)
    low = min(range(len(small)), key=small.__getitem__)
    findings.append(
        f"{number(100 * mean_small)} % are at most {level:g} in size: from "
        f"{number(100 * small[low])} % at layer {names[low]} to {number(100 * small[at])} % at "
        f"layer {names[at]}."
    )
    dead, units = [r.num_dead[1] for r in results], [r.active_KD.shape[1] for r in results]
    most = f"; layer {names[dead.index(max(dead))]} has the most ({max(dead):,})"
    findings.append(
        f"{sum(dead):,} of {sum(units):,} units never exceed {level:g} on this data"
        f"{most if max(dead) else ''}."
    )
    figure = _lines(
        "Share of activations", names, "share", False,
        exactly_zero=zeros, **{f"at most {level:g} in size": small},
    )  # fmt: skip
    return findings, [figure]


def _dominant(
    names: list[str], results: list[Any], decode: Decode
) -> tuple[list[str], list[Figure]]:
    ratios = [r.ratios[0] for r in results]
    at = max(range(len(ratios)), key=ratios.__getitem__)
    peak = results[at].top[0]
    token = f", token {decode(peak.token)!r}" if decode is not None and peak.token >= 0 else ""
    findings = [
        f"The largest outlier is {number(peak.value)} in unit {peak.unit} at layer {names[at]} "
        f"(position {peak.position}{token}), {number(ratios[at])} times the layer's median size."
    ]
    massive = [(n, r) for n, r in zip(names, results, strict=True) if r.num_massive]
    if massive:
        units = sorted({u for _, r in massive for u in r.massive_units})
        places = {r.top[0].position for _, r in massive}
        findings.append(
            f"{len(massive)} of {len(names)} layers hold massive activations (over 100 and over "
            f"1,000 times the median), from layer {massive[0][0]} to {massive[-1][0]}, in "
            f"{'unit' if len(units) == 1 else 'units'} {', '.join(map(str, units[:6]))}"
            f"{' and more' if len(units) > 6 else ''}; the largest of each layer is at position "
            f"{', '.join(map(str, sorted(places)[:6]))}."
        )
    else:
        findings.append("No activation is massive (over 100 and over 1,000 times the median).")
    figure = _lines(
        "Largest activation against the median", names, "size", True,
        largest=[abs(r.top[0].value) for r in results], median=[r.median for r in results],
    )  # fmt: skip
    return findings, [figure]


def _dimensions(names: list[str], results: list[Any], _: Decode) -> tuple[list[str], list[Figure]]:
    ranks = [r.effective_rank for r in results]
    widths = [len(r.eigenvalues_D) for r in results]
    shares = [a / b for a, b in zip(ranks, widths, strict=True)]
    low = min(range(len(shares)), key=shares.__getitem__)
    high = max(range(len(shares)), key=shares.__getitem__)
    findings = [
        f"The effective rank is lowest at layer {names[low]}: {number(ranks[low])} of "
        f"{widths[low]} dimensions ({number(100 * shares[low])} %), and highest at layer "
        f"{names[high]}: {number(ranks[high])} of {widths[high]} "
        f"({number(100 * shares[high])} %)."
    ]
    first = [r.share_first for r in results]
    at = max(range(len(first)), key=first.__getitem__)
    findings.append(
        f"One direction holds at most {number(100 * first[at])} % of the variance "
        f"(layer {names[at]}); 90 % of it takes {min(r.num_90 for r in results)} to "
        f"{max(r.num_90 for r in results)} directions."
    )
    few = [n for n, r in zip(names, results, strict=True) if r.num_rows < 4 * len(r.eigenvalues_D)]
    if few:
        findings.append(
            f"{len(few)} layers had fewer than 4 rows for each dimension: ranks there are too low."
        )
    figure = _lines(
        "Dimensions in use", names, "number of dimensions", False,
        effective_rank=ranks, RankMe=[r.rankme for r in results],
        directions_for_90_percent=[r.num_90 for r in results],
    )  # fmt: skip
    return findings, [figure]


def _rests(names: list[str], results: list[Any], _: Decode) -> tuple[list[str], list[Figure]]:
    masses = [r.first_H.tolist() for r in results]
    means = [sum(m) / len(m) for m in masses]
    heads = [x for m in masses for x in m]
    num_sinks = sum(x > 0.3 for x in heads)
    at = max(range(len(means)), key=means.__getitem__)
    findings = [
        f"{number(100 * sum(heads) / len(heads))} % of attention rests on the first token; "
        f"{num_sinks} of {len(heads)} heads give it more than 30 %.",
        f"It is strongest at layer {names[at]} with {number(100 * means[at])} % on average.",
    ]
    evenness = [float(r.spread_H.mean()) for r in results]
    low = min(range(len(evenness)), key=evenness.__getitem__)
    findings.append(
        f"Attention is most focused at layer {names[low]}: its entropy is "
        f"{number(100 * evenness[low])} % of that of even attention."
    )
    width = max(map(len, masses))
    rows = {f"head {h}": tuple(m[h] for m in masses) for h in range(width)}
    figure = Figure(
        "map", "Attention on the first token", tuple(names), "layer", "share of attention", rows
    )
    return findings, [figure]


_FIRST = "The first token of each sample is left out, since its activations are unlike all others."
QUESTIONS = (
    Question(
        "size", "How big are activations?", "stream", Moments, _size,
        f"Residual stream (or block outputs). {_FIRST}",
    ),
    Question(
        "sparsity", "How sparse are they?", "hidden", Sparsity, _sparse,
        f"Inside the MLPs (or after activation functions). {_FIRST}",
    ),
    Question(
        "massive", "Which units dominate?", "stream", Massive, _dominant,
        "All tokens, the first one too: massive activations live there.",
    ),
    Question(
        "spectrum", "How many dimensions are used?", "stream", Spectrum, _dimensions,
        f"Effective rank is exp(entropy) of the covariance's eigenvalues. {_FIRST}",
    ),
    Question(
        "sinks", "Where does attention rest?", "attention", Sinks, _rests,
        "Queries from position 8 on; entropy relative to even attention over the visible keys.",
    ),
)  # fmt: skip
