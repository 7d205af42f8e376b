"""How many dimensions the rows spread over."""

from collections.abc import Iterable, Sequence
from statistics import median

from actkit.read.streaming.spectrum import Spectrum, SpectrumResult
from actkit.scanning.format import count, number, percent
from actkit.scanning.questions._base import Decode, Question, Told
from actkit.scanning.questions._shared import WITHOUT_FIRST, figure_of

ROWS_PER_DIMENSION = 4
"""Below this, a rank says more about the number of rows than about the layer."""


def tell(names: Sequence[str], results: Sequence[SpectrumResult], decode: Decode) -> Told:
    """Tell how many dimensions the rows spread over, and the headline in words."""
    said, figures = dimensions(names, results, decode)
    middle = percent(value(results))
    return [*said, f"In the median layer the effective rank is {middle} of the width."], figures


def dimensions(names: Sequence[str], results: Sequence[SpectrumResult], _: Decode) -> Told:
    """Tell how many dimensions the rows spread over, layer by layer."""
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
        "Dimensions in use",
        names,
        "number",
        {
            "effective rank": ranks,
            "RankMe": [r.rankme for r in results],
            "directions for 90%": [r.num_90 for r in results],
        },
    )
    return findings, [figure]


def value(results: Sequence[SpectrumResult]) -> float:
    """Return the effective rank as a share of the width, in the median layer."""
    return median(r.effective_rank / len(r.eigenvalues_D) for r in results)


def _span(numbers: Iterable[int]) -> str:
    found = sorted(numbers)
    if found[0] == found[-1]:
        return count(found[0], "direction")
    return f"{found[0]} to {count(found[-1], 'direction')}"


QUESTION = Question(
    order=40,
    key="spectrum",
    text="How many dimensions are used?",
    kind="stream",
    reading=Spectrum,
    tell=tell,
    value=value,
    what="effective rank / width, in the median layer",
    percent=True,
    note="Effective rank: exp of the entropy of the covariance's eigenvalues. RankMe: the same "
    "of singular values, the mean not taken off.",
    texts=WITHOUT_FIRST,
)
