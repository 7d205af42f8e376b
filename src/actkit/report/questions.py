"""The five questions of a scan: of which sites, by which reading, and how the answer is told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from actkit.read._base import Reading
from actkit.read.massive import Massive
from actkit.read.moments import Moments
from actkit.read.sinks import Sinks
from actkit.read.sparsity import Sparsity
from actkit.read.spectrum import Spectrum
from actkit.report import findings
from actkit.report.findings import Decode, Told
from actkit.report.layers import Layers, labels
from actkit.report.report import Page
from actkit.report.words import count, listed

FEW = 100
"""Rows below which a page says how few there were."""


@dataclass(frozen=True)
class Question:
    """A question, what is read to answer it, and how the answer is told.

    Attributes:
        key: Short name.
        text: What a person would ask.
        kind: The sites of `Layers` that it is asked of: "stream", "hidden" or "attention".
        reading: Makes an empty reading.
        tell: Makes findings and figures of layers that have rows.
        note: How it is measured.
        texts: What is left out of texts.
    """

    key: str
    text: str
    kind: str
    reading: Callable[[], Reading]
    tell: Callable[[Sequence[str], Sequence[Any], Decode], Told]
    note: str = ""
    texts: str = ""

    def answer(
        self, layers: Layers, read: Sequence[Reading], decode: Decode = None, texts: bool = True
    ) -> Page:
        """Return the page of this question.

        Args:
            layers: The sites.
            read: For each site of this question's kind its fed reading.
            decode: Shows a token id as text.
            texts: Whether texts were read.
        """
        sites, results = layers.of(self.kind), [r.result() for r in read]
        names = labels([s.name for s in sites])
        told = [(n, r) for n, r in zip(names, results, strict=True) if r.num_rows]
        said: list[str] = []
        figures: list[Any] = []
        if told:
            said, figures = self.tell([n for n, _ in told], [r for _, r in told], decode)
        words = layers.words[self.kind]
        return Page(
            key=f"{layers.name}-{self.key}".lstrip("-"),
            question=f"{self.text} ({layers.name})" if layers.name else self.text,
            findings=(*said, *_missing(names, results)),
            figures=tuple(figures),
            numbers={s.name: r.summary() for s, r in zip(sites, results, strict=True)},
            note=" ".join(
                filter(
                    None,
                    (f"{words[0].upper()}{words[1:]}.", self.note, self.texts if texts else ""),
                )
            ),
        )


def _missing(names: Sequence[str], results: Sequence[Any]) -> list[str]:
    """Return sentences on what could not be read."""
    found = []
    empty = [n for n, r in zip(names, results, strict=True) if not r.num_rows]
    if len(empty) == len(names):
        found.append("There was nothing to read here: no row was left.")
    elif empty:
        found.append(f"No row was left to read at {_at(empty)}.")
    lost = {n: r.num_nonfinite for n, r in zip(names, results, strict=True) if r.num_nonfinite}
    if lost:
        rows = count(sum(lost.values()), "row")
        found.append(f"{rows} held NaN or infinity and stayed out, at {_at([*lost])}.")
    most = max(r.num_rows for r in results)
    if 0 < most < FEW:
        found.append(f"Only {count(most, 'row')} could be read, too few for firm numbers.")
    return found


def _at(names: Sequence[str]) -> str:
    return f"{'layer' if len(names) == 1 else 'layers'} {listed(names)}"


_FIRST = "The first token of each sample is left out: its activations are unlike all others."
QUESTIONS = (
    Question("size", "How big are activations?", "stream", Moments, findings.size, texts=_FIRST),
    Question("sparsity", "How sparse are they?", "hidden", Sparsity, findings.sparse, texts=_FIRST),
    Question(
        "massive", "Which units dominate?", "stream", Massive, findings.dominant,
        texts="All tokens, the first one too: massive activations live there.",
    ),
    Question(
        "spectrum", "How many dimensions are used?", "stream", Spectrum, findings.dimensions,
        note="Effective rank: exp of the entropy of the covariance's eigenvalues. RankMe: the same "
        "of singular values, the mean not taken off.",
        texts=_FIRST,
    ),
    Question(
        "sinks", "Where does attention rest?", "attention", Sinks, findings.rests,
        note=f"Queries from position {Sinks.min_position} on. Entropy is relative to even "
        "attention over the keys that a query sees.",
    ),
)  # fmt: skip
