"""The questions that a scan asks, in their order."""

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from actkit.read.massive import Massive
from actkit.read.moments import Moments
from actkit.read.sinks import Sinks
from actkit.read.sparsity import Sparsity
from actkit.read.spectrum import Spectrum
from actkit.report import findings
from actkit.report.questions import Question

_FIRST = "The first token of each sample is left out: its activations are unlike all others."


def _growth(results: Sequence[Any]) -> float:
    first, last = results[0].norm_mean, results[-1].norm_mean
    return float(last / first) if first else float("nan")


def _small(results: Sequence[Any]) -> float:
    return fmean(r.below[1] for r in results)


def _largest(results: Sequence[Any]) -> float:
    return max(float(r.ratios[0]) for r in results)


def _rank(results: Sequence[Any]) -> float:
    return median(float(r.effective_rank) / len(r.eigenvalues_D) for r in results)


def _resting(results: Sequence[Any]) -> float:
    return fmean(float(r.first_H.mean()) for r in results)


QUESTIONS = (
    Question(
        "size", "How big are activations?", "stream", Moments, findings.size, _growth,
        "mean length after the last layer / after the first", texts=_FIRST,
    ),
    Question(
        "sparsity", "How sparse are they?", "hidden", Sparsity, findings.sparse, _small,
        "activations of at most 0.1 in size", percent=True, texts=_FIRST,
    ),
    Question(
        "massive", "Which units dominate?", "stream", Massive, findings.dominant, _largest,
        "largest activation / median of its layer",
        texts="All tokens, the first one too: massive activations live there.",
    ),
    Question(
        "spectrum", "How many dimensions are used?", "stream", Spectrum, findings.dimensions,
        _rank, "effective rank / width, in the median layer", percent=True,
        note="Effective rank: exp of the entropy of the covariance's eigenvalues. RankMe: the same "
        "of singular values, the mean not taken off.",
        texts=_FIRST,
    ),
    Question(
        "sinks", "Where does attention rest?", "attention", Sinks, findings.rests, _resting,
        "attention on the first token", percent=True,
        note=f"Queries from position {Sinks.min_position} on. Entropy is relative to even "
        "attention over the keys that a query sees.",
    ),
)  # fmt: skip
