"""How many layers add to a token's state, and which ones mostly do not."""

from collections.abc import Sequence
from itertools import groupby
from statistics import fmean

from actkit.read.streaming.voids import Voids, VoidsResult
from actkit.scanning.format import count, number, percent
from actkit.scanning.questions._base import Decode, Question, Told
from actkit.scanning.questions._shared import WITHOUT_FIRST, figure_of

MOSTLY = 0.5
"""Share of tokens below which a layer counts as mostly void."""


def tell(names: Sequence[str], results: Sequence[VoidsResult], _: Decode) -> Told:
    """Tell how many layers add to a token's state, and which ones mostly do not."""
    (result,) = results
    active = result.active_AL[0].tolist()
    void = [i for i, share in enumerate(active) if share < MOSTLY]
    findings = [
        f"{percent(fmean(active))} of a token's layers are active: they make its state longer by "
        f"at least {number(result.alphas[0])} of the range of the layers before them.",
        f"{count(len(void), 'layer')} of {len(names)} {'are' if len(void) != 1 else 'is'} void "
        f"for more than half of the tokens{f': {_runs(names, void)}' if void else ''}.",
    ]
    figure = figure_of(
        "Tokens for which a layer is active",
        names,
        "share of tokens",
        {"active": active},
        percent=True,
    )
    return findings, [figure]


def value(results: Sequence[VoidsResult]) -> float:
    """Return the share of a token's layers that are active; layers count alike."""
    return fmean(results[0].active_AL[0].tolist())


def _runs(names: Sequence[str], chosen: Sequence[int]) -> str:
    """Return chosen layers as spans: "3 to 18, 24"."""
    spans = [
        [i for _, i in run] for _, run in groupby(enumerate(chosen), lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(
        names[s[0]] if len(s) == 1 else f"{names[s[0]]} to {names[s[-1]]}" for s in spans
    )


QUESTION = Question(
    order=70,
    key="voids",
    text="Which layers make the state longer?",
    kind="path",
    reading=Voids,
    tell=tell,
    value=value,
    what="active layers of a token",
    percent=True,
    note="L2 adaptive computation: a layer is active if it adds to the length of a token's "
    "state at least 0.8 of the range of what the layers before it added.",
    texts=WITHOUT_FIRST,
)
