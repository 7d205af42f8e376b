"""Writes docs/architectures.md from the results of all types."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers

from actkit.core.sites.site import POINTS
from tests.architectures.checks import CHECKS

COLUMNS = ("open", *CHECKS, "clean")
PAGE = Path("docs/architectures.md")
MEANING = {
    "open": "`ak.open` takes the network, or refuses it by a typed error",
    **{name: str(check.__doc__).split("\n")[0].rstrip(".") for name, check in CHECKS.items()},
    "clean": "no hook, attribute, weight or setting is left behind",
}
HEAD = """# Architectures

Every type of transformers' mappings for text, images and sound, as a tiny network with uneven
random weights, examined by `make architectures`; a fifth of them, chosen by their names, runs in
`make test`. Written with transformers {transformers} and torch {torch}.

{summary}

## What is checked

{meaning}

**holds**; **—**: the type cannot do it (no token ids, no attention that can be read); a number is
the reason why it is refused, below. Nothing may be wrong: a wrong number or an untyped error would
stand here as WRONG, and fails the test.
"""
POINTS_HEAD = """
## Type by point

**+**: in all layers; numbers in brackets: in these layers only; other numbers: why it is refused,
below. A type that is not listed here has module paths, `path:in` and `path:out`, and no points.
"""


class Notes:
    """Reasons, each once, by number."""

    def __init__(self) -> None:
        """Start without any."""
        self.numbers: dict[str, int] = {}

    def number(self, reason: str) -> int:
        """Return the number of a reason."""
        return self.numbers.setdefault(reason, len(self.numbers) + 1)

    def lines(self) -> list[str]:
        """Return the list of reasons."""
        return [f"{n}. {_safe(reason)}" for reason, n in self.numbers.items()]


def write(results: dict[str, dict[str, Any]]) -> None:
    """Write the page."""
    notes = Notes()
    examined = {k: r for k, r in results.items() if "cells" in r}
    lines = [_head(results, examined), "\n## Type by check\n"]
    lines += _table(
        ["type", "found", *COLUMNS], [_checks(k, r, notes) for k, r in examined.items()]
    )
    lines.append(POINTS_HEAD)
    rows = [row for k, r in examined.items() for row in _points(k, r, notes)]
    lines += _table(["type", *POINTS], rows)
    lines += ["\n## Reasons\n", *notes.lines()]
    others = {k: r["reason"] for k, r in results.items() if "cells" not in r}
    lines += [
        "\n## Not examined\n",
        "No tiny network of these types was built and fed, or none in time.\n",
    ]
    lines += _table(["type", "reason"], [[k, _safe(why)] for k, why in others.items()])
    PAGE.write_text("\n".join(lines) + "\n")


def _head(results: dict[str, Any], examined: dict[str, Any]) -> str:
    ways = Counter(_found(r) for r in examined.values())
    cells = Counter(status for r in examined.values() for status, _ in r["cells"].values())
    summary = (
        f"{len(results)} types, {len(examined)} examined: {ways['table']} have a table, of "
        f"{ways['structure']} the points are found by structure, {ways['paths']} have module paths "
        f"alone. Of {sum(cells.values())} cells {cells['holds']} hold, {cells['refused']} are "
        f"refused, {cells['none']} do not apply, {cells['wrong']} are wrong."
    )
    meaning = "\n".join(f"- **{name}**: {MEANING[name]}." for name in COLUMNS)
    return HEAD.format(
        transformers=transformers.__version__,
        torch=torch.__version__.partition("+")[0],
        summary=summary,
        meaning=meaning,
    )


def _found(result: dict[str, Any]) -> str:
    note = result.get("note", "")
    if note.startswith("points from the table"):
        return "table"
    return "structure" if note.startswith("found by structure") else "paths"


def _checks(kind: str, result: dict[str, Any], notes: Notes) -> list[str]:
    row = [kind, _found(result)]
    for name in COLUMNS:
        status, words = result["cells"].get(name, ("none", ""))
        if status == "refused":
            row.append(str(notes.number(words)))
        elif status == "wrong":
            row.append(f"WRONG {notes.number(words)}")
        else:
            row.append({"holds": "holds", "none": "—"}[status])
    return row


def _points(kind: str, result: dict[str, Any], notes: Notes) -> list[list[str]]:
    stacks: dict[str, dict[str, Any]] = {}
    for name, own in result.get("points", {}).items():
        stack, _, point = name.rpartition(".")
        stacks.setdefault(stack, {})[point] = own
    rows = []
    for stack, points in stacks.items():
        row = [f"{kind} {stack}".strip()]
        for point in POINTS:
            own = points.get(point, {"has": [], "lacks": {}})
            reasons = ", ".join(str(notes.number(r)) for r in own["lacks"])
            some = f"({', '.join(map(str, own['has']))})" if own["has"] and reasons else ""
            row.append(" ".join(filter(None, (some, reasons))) or "+")
        rows.append(row)
    return rows


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _safe(words: str) -> str:
    """Return words that Markdown leaves as they are."""
    return words.replace("|", "/").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results of all types, by type."""
    files = sorted(folder.glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files}
