"""The questions that a scan asks, in their order."""

from collections.abc import Sequence
from math import nan
from statistics import fmean
from typing import Any

from actkit.read.network.io_functionality import io_functionality
from actkit.read.network.ppl_sparsity import ppl_sparsity
from actkit.read.streaming.extreme_tokens import ExtremeTokens
from actkit.read.streaming.massive import Massive
from actkit.read.streaming.moments import Moments
from actkit.read.streaming.sinks import Sinks
from actkit.read.streaming.sparsity import Sparsity
from actkit.read.streaming.spectrum import Spectrum
from actkit.read.streaming.stream_dynamics import StreamDynamics
from actkit.read.streaming.voids import Voids
from actkit.scanning import deeper, findings
from actkit.scanning.findings import Told
from actkit.scanning.format import percent
from actkit.scanning.of_sites import Question

SEARCHED = 512
"""Tokens on which the neurons that are needed are searched."""
_FIRST = "The first token of each sample is left out: its activations are unlike all others."


def _growth(results: Sequence[Any]) -> float:
    if len(results) < 2:
        return nan
    first, last = results[0].norm_mean, results[-1].norm_mean
    return float(last / first) if first else nan


def _largest(results: Sequence[Any]) -> float:
    return max(float(r.ratios[0]) for r in results)


def _dimensions(names: Sequence[str], results: Sequence[Any], decode: findings.Decode) -> Told:
    """Tell how many dimensions the rows spread over, and the headline in words."""
    said, figures = findings.dimensions(names, results, decode)
    middle = percent(findings.median_rank(results))
    return [*said, f"In the median layer the effective rank is {middle} of the width."], figures


QUESTIONS = (
    Question(
        "size", "How big are activations?", "stream", Moments, findings.size, _growth,
        "mean length after the last layer / after the first", texts=_FIRST,
    ),
    Question(
        "sparsity", "How sparse are they?", "hidden", Sparsity, findings.sparse,
        findings.small_share,
        "activations of at most 0.1 in size", percent=True, texts=_FIRST,
    ),
    Question(
        "massive", "Which units dominate?", "stream", Massive, findings.dominant, _largest,
        "largest activation / median of its layer",
        texts="All tokens, the first one too: massive activations live there.",
    ),
    Question(
        "spectrum", "How many dimensions are used?", "stream", Spectrum, _dimensions,
        findings.median_rank, "effective rank / width, in the median layer", percent=True,
        note="Effective rank: exp of the entropy of the covariance's eigenvalues. RankMe: the same "
        "of singular values, the mean not taken off.",
        texts=_FIRST,
    ),
    Question(
        "sinks", "Where does attention rest?", "attention", Sinks, findings.rests,
        findings.resting,
        "attention on the first token", percent=True,
        note=f"Queries from position {Sinks.min_position} on. Entropy is relative to even "
        "attention over the keys that a query sees.",
    ),
    Question(
        "first_token", "Which heads rest on the first token?", "heads", ExtremeTokens,
        deeper.extremes, deeper.heads_at_rest, "heads that rest on the first token", percent=True,
        note="On the mean over these texts. A head that rests may be needed all the same: by what "
        "it gives to other tokens, and in other texts.",
    ),
    Question(
        "voids", "Which layers make the state longer?", "path", Voids, deeper.voids,
        lambda results: fmean(results[0].active_AL[0].tolist()),
        "active layers of a token", percent=True,
        note="L2 adaptive computation: a layer is active if it adds to the length of a token's "
        "state at least 0.8 of the range of what the layers before it added.",
        texts=_FIRST,
    ),
    Question(
        "dynamics", "How does the stream move?", "path", StreamDynamics, deeper.dynamics,
        deeper.continuity, "correlation of a unit with itself one layer before", texts=_FIRST,
    ),
    Question(
        "neurons", "What do neurons write?", "gates", None, deeper.neurons, deeper.turn,
        "mean cos(reads, writes), first half of the layers less last third",
        note="The cosine between what a gated neuron's linear part reads and what it writes.",
        measure=lambda model, _: [*io_functionality(model).values()],
    ),
    Question(
        "needed", "How many neurons are needed?", "neurons", None, deeper.needed,
        lambda results: results[0].activation_ratio,
        "neurons that a token needs at 1% more perplexity", percent=True,
        note="PPL-1% sparsity on the first 512 tokens: neurons that write little are off, in "
        "all layers alike, until perplexity has grown by 1%. An untrained network has no "
        "perplexity to keep and is not asked.",
        measure=lambda model, samples: [ppl_sparsity(model, first_tokens(samples, SEARCHED))],
        control=False,
    ),
)  # fmt: skip


def first_tokens(samples: Sequence[list[int]], limit: int) -> list[list[int]]:
    """Return the first samples, up to a number of tokens in all.

    Example:
        >>> first_tokens([[1, 2, 3], [4, 5], [6]], 4)
        [[1, 2, 3], [4]]
    """
    found: list[list[int]] = []
    for sample in samples:
        room = limit - sum(map(len, found))
        if room > 0:
            found.append(sample[:room])
    return found
