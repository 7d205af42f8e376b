"""How many neurons a token needs."""

from collections.abc import Sequence
from typing import Any

from actkit.model import Model
from actkit.read.network.ppl_sparsity import PplSparsity, ppl_sparsity
from actkit.scanning.format import percent
from actkit.scanning.questions._base import Decode, Question, Told
from actkit.scanning.questions._shared import figure_of

SEARCHED = 512
"""Tokens on which the neurons that are needed are searched."""


def tell(names: Sequence[str], results: Sequence[PplSparsity], _: Decode) -> Told:
    """Tell how many neurons a token needs."""
    (result,) = results
    kept = [*result.kept.values()]
    most, least = kept.index(max(kept)), kept.index(min(kept))
    findings = [
        f"With {percent(result.activation_ratio)} of its MLP neurons a token is predicted as well "
        f"but for {percent(result.ratio - 1)} of perplexity.",
        f"Layer {names[most]} needs most of them ({percent(kept[most])}), layer {names[least]} "
        f"fewest ({percent(kept[least])}).",
    ]
    figure = figure_of(
        "Neurons that stay on", names, "share of neurons", {"kept": kept}, percent=True
    )
    return findings, [figure]


def value(results: Sequence[PplSparsity]) -> float:
    """Return the share of neurons that a token needs."""
    return results[0].activation_ratio


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


def _measure(model: Model, samples: Sequence[Any]) -> list[PplSparsity]:
    """Return what the search found, all layers together."""
    return [ppl_sparsity(model, first_tokens(samples, SEARCHED))]


QUESTION = Question(
    order=100,
    key="needed",
    text="How many neurons are needed?",
    kind="neurons",
    reading=None,
    tell=tell,
    value=value,
    what="neurons that a token needs at 1% more perplexity",
    percent=True,
    note="PPL-1% sparsity on the first 512 tokens: neurons that write little are off, in "
    "all layers alike, until perplexity has grown by 1%. An untrained network has no "
    "perplexity to keep and is not asked.",
    measure=_measure,
    control=False,
)
