"""What a question of a scan is: of which sites, by which reading, and how the answer is told.

A question is one file of this folder: its reading, sentences, figures and headline number. The
file defines `QUESTION`, and the scan finds it there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Any

from actkit.model import Model
from actkit.scanning.answer import Answer, Figure, Page
from actkit.scanning.format import count, listed
from actkit.scanning.layers import TOGETHER, Layers, labels

Decode = Callable[[int], str] | None
"""Shows a token id as text."""
Told = tuple[list[str], list[Figure]]
"""Sentences and figures. Both the numbers and the claim of a sentence are computed."""
CONTROL = "untrained"
"""The name of the untrained copy, beside the scanned network."""
SAME = 0.05
"""Share by which the untrained copy's number must differ to be another one."""
FEW = 100
"""Rows below which a page says how few there were."""


@dataclass(frozen=True)
class Seen:
    """What was read of one stack of one network, to answer one question.

    Attributes:
        layers: The sites.
        kind: Which of them were read.
        results: For each key of `layers.keys(kind)` its finished reading.
        decode: Shows a token id as text.
        reason: Why there are no results.
    """

    layers: Layers
    kind: str
    results: Sequence[Any]
    decode: Decode = None
    reason: str = ""

    @property
    def names(self) -> list[str]:
        """Return the layers' short names."""
        sites = self.layers.of("stream" if self.kind == "path" else self.kind)
        return labels([s.name for s in sites])

    @property
    def used(self) -> dict[str, Any]:
        """Return the results that have rows, by the name of the layer."""
        return {n: r for n, r in zip(self.keys, self.results, strict=False) if _num_rows(r)}

    @property
    def keys(self) -> list[str]:
        """Return the names of the results."""
        return ["all"] if self.kind in TOGETHER else self.names

    def told(self, tell: Callable[[Sequence[str], Sequence[Any], Decode], Told]) -> Told:
        """Return findings and figures of the layers that have rows."""
        used = self.used
        if not used:
            return [], []
        names = self.names if self.kind in TOGETHER else [*used]
        return tell(names, [*used.values()], self.decode)

    def numbers(self) -> dict[str, Mapping[str, float]]:
        """Return the numbers of every site."""
        keys = self.layers.keys(self.kind)
        named = [k if isinstance(k, str) else _span(k) for k in keys]
        return {n: r.summary() for n, r in zip(named, self.results, strict=False)}


def _num_rows(result: Any) -> int:
    """Return of how many rows a result is; what is not made of rows always counts."""
    rows: int = getattr(result, "num_rows", FEW)
    return rows


@dataclass(frozen=True)
class Question:
    """A question, what is read to answer it, and how the answer is told.

    Attributes:
        order: Its place among the questions, in steps of ten; no two have one place.
        key: Short name, which finds its reference number in `usual.json` too.
        text: What a person would ask.
        kind: The sites that it is asked of; see `Layers.keys`.
        reading: Makes an empty reading; None for what is measured otherwise.
        tell: Makes findings and figures from the labels of the layers, their finished readings (at
            least one, each with rows; one for all labels where layers are read together) and
            what shows a token as text; the first series of the first figure is the one that is
            drawn of other networks too.
        value: Makes the one number of all results that have rows.
        what: What that number is.
        percent: Whether it is a share.
        note: How it is measured.
        texts: What is left out of texts.
        measure: Makes the results from a network and its tokens, where there is no reading.
        control: Whether it is asked of an untrained network too.
    """

    order: int
    key: str
    text: str
    kind: str
    reading: Callable[[], Any] | None
    tell: Callable[[Sequence[str], Sequence[Any], Decode], Told]
    value: Callable[[Sequence[Any]], float]
    what: str
    percent: bool = False
    note: str = ""
    texts: str = ""
    measure: Callable[[Model, Sequence[Any]], Sequence[Any]] | None = None
    control: bool = True

    def answer(self, seen: Mapping[str, Seen], usual: Mapping[str, float], texts: bool) -> Page:
        """Return the page of this question.

        Args:
            seen: What was read of the scanned network, then of those beside it, by name.
            usual: The page's number for other networks of its kind.
            texts: Whether texts were read.
        """
        main, *_ = seen.values()
        said, figures = main.told(self.tell)
        others = {name: s.told(self.tell)[1] for name, s in [*seen.items()][1:]}
        figures = [*figures]
        for name, drawn in others.items():
            if figures and drawn:
                figures[0] = _beside(figures[0], name, drawn[0])
        words = main.layers.words[self.kind]
        notes = (f"{words[0].upper()}{words[1:]}.", self.note, self.texts if texts else "")
        values = {n: self.value([*s.used.values()]) if s.used else nan for n, s in seen.items()}
        stack = main.layers.name
        return Page(
            key=f"{stack}-{self.key}".lstrip("-"),
            question=f"{self.text} ({stack})" if stack else self.text,
            findings=(*said, *self._untold(values), *_missing(main)),
            figures=tuple(figures),
            numbers=main.numbers(),
            note=" ".join(filter(None, notes)),
            answer=Answer(self.what, values, usual, self.percent),
        )

    def _untold(self, values: Mapping[str, float]) -> list[str]:
        """Return a sentence if the number is that of the untrained copy, which learnt nothing."""
        main, control = next(iter(values.values())), values.get(CONTROL, nan)
        if not abs(main - control) <= SAME * max(abs(main), abs(control)):
            return []
        shown = Answer(self.what, {CONTROL: control}, percent=self.percent).shown()
        return [
            f"This is no different from the untrained copy ({self.what}: {shown}): it comes with "
            "the architecture and the data, not with training."
        ]


def _span(sites: Sequence[str]) -> str:
    """Return a name for sites that were read together."""
    return sites[0] if len(sites) < 2 else f"{sites[0]} to {sites[-1]}"


def _beside(figure: Figure, name: str, other: Figure) -> Figure:
    """Return a figure with another network's first series beside its own.

    A network of another depth is drawn at the same share of the way through its layers.
    """
    if figure.kind != "lines":
        return figure
    (title, values), *_ = other.series.items()
    steps = max(len(figure.x) - 1, 1)
    at = [round(i * (len(values) - 1) / steps) for i in range(len(figure.x))]
    label = f"{title}, {name}"
    series = {**figure.series, label: tuple(values[i] for i in at)}
    return replace(figure, series=series, beside=(*figure.beside, label))


def _missing(seen: Seen) -> list[str]:
    """Return sentences on what could not be read."""
    if seen.reason:
        return [f"This could not be measured: {seen.reason}."]
    found, each = [], dict(zip(seen.keys, seen.results, strict=True))
    empty = [n for n, r in each.items() if not _num_rows(r)]
    if len(empty) == len(each):
        found.append("There was nothing to read here: no row was left.")
    elif empty:
        found.append(f"No row was left to read at {_at(empty)}.")
    lost = {n: k for n, r in each.items() if (k := getattr(r, "num_nonfinite", 0))}
    if lost:
        rows = count(sum(lost.values()), "row")
        where = "" if seen.kind in TOGETHER else f", at {_at([*lost])}"
        found.append(f"{rows} held NaN or infinity and stayed out{where}.")
    most = max(map(_num_rows, each.values()))
    if 0 < most < FEW:
        found.append(f"Only {count(most, 'row')} could be read, too few for firm numbers.")
    return found


def _at(names: Sequence[str]) -> str:
    return f"{'layer' if len(names) == 1 else 'layers'} {listed(names)}"
