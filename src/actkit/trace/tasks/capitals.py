"""Capitals of countries: "The capital of France is" -> " Paris", against another country."""

from actkit import data
from actkit.core.errors import InputError
from actkit.trace._task import Task
from actkit.trace.tasks._written import of_rows, words_of

PLACE = 1

COUNTRIES = words_of(
    "France Germany Italy Spain Portugal Poland Greece Austria Hungary Sweden Norway Finland",
    "Denmark Ireland Belgium Switzerland China Japan Iran Iraq Australia Canada Cuba Jamaica",
    "Peru Chile",
)
"""Of which the capital is one token, too."""


def capitals(
    num: int | None = None, kind: str = "statement", metric: str = "logit difference"
) -> Task:
    """Capitals of countries: "The capital of France is" -> " Paris", against another country.

    Args:
        num: How many pairs; all 26 if None.
        kind: One of the four sentences: "statement", "city", "parliament", "visit".
        metric: As in `Task`.
    """
    rows = [r for r in data.capitals() if r.kind == kind and r.subject in COUNTRIES][:num]
    if not rows:
        raise InputError(f"kind must be one of the sentences of ak.data.capitals(), got {kind!r}")
    return of_rows(rows, "capitals", metric)
