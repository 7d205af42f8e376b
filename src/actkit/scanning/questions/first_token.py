"""Which heads rest on the first token, and how its values and its state differ."""

from collections.abc import Sequence
from statistics import fmean

from actkit.read.streaming.extreme_tokens import ExtremeTokens, ExtremeTokensResult
from actkit.scanning.format import count, number, percent
from actkit.scanning.questions._base import Decode, Question, Told
from actkit.scanning.questions._shared import figure_of

DRAINED = 0.5
"""Length of the first token's values, against the usual, below which they are drained."""


def tell(names: Sequence[str], results: Sequence[ExtremeTokensResult], _: Decode) -> Told:
    """Tell how the first token differs: heads that rest on it, its values and its state.

    The paper calls such heads dormant. What they give to other tokens may matter all the same:
    among them are heads that a task needs.
    """
    at_rest = [int(r.dormant_H.sum()) for r in results]
    heads, peaks = sum(len(r.dormant_H) for r in results), [r.peak for r in results]
    drains = [float(r.drain_G.nanmean()) for r in results]
    drained = sum(x < DRAINED for x in drains)
    top = peaks.index(max(peaks))
    findings = [
        f"{percent(value(results))} of heads ({sum(at_rest)} of {heads:,}) rest on the "
        f"first token: it gets more than {percent(ExtremeTokens.threshold)} of their attention.",
        f"Its values are drained, below half the usual length, at {drained} of "
        f"{count(len(results), 'layer')}.",
        f"Its state is {number(peaks[top])} times as long as the median token's at layer "
        f"{names[top]}.",
    ]
    shares = [n / len(r.dormant_H) for n, r in zip(at_rest, results, strict=True)]
    lengths = {"state": peaks, "values": drains}
    return findings, [
        figure_of(
            "Heads that rest on the first token",
            names,
            "share of heads",
            {"at rest": shares},
            percent=True,
        ),
        figure_of(
            "Length of the first token / median of the others",
            names,
            "ratio",
            lengths,
            log=max(peaks) > 20 * min(drains) > 0,
        ),
    ]


def value(results: Sequence[ExtremeTokensResult]) -> float:
    """Return the share of heads that rest on the first token."""
    return fmean(float(x) for r in results for x in r.dormant_H)


QUESTION = Question(
    order=60,
    key="first_token",
    text="Which heads rest on the first token?",
    kind="heads",
    reading=ExtremeTokens,
    tell=tell,
    value=value,
    what="heads that rest on the first token",
    percent=True,
    note="On the mean over these texts. A head that rests may be needed all the same: by what "
    "it gives to other tokens, and in other texts.",
)
