"""The evidence table: from what marked tests recorded to `evidence.json` and `evidence.md`.

    python -m actkit.evidence [RECORDS] [--docs docs] [--keep]

RECORDS is a folder of JSON lines, one per marked test, as `pytest --evidence=RECORDS` writes it.
Without it only `evidence.md` is written again, from `evidence.json`.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from actkit.catalog import methods
from actkit.core.errors import DataError
from actkit.papers import PURPOSES, Figure, Paper, Standing, papers

HEAD = """# Evidence

Each paper is answered by at least one test that reproduces its claim at small scale. A paper works
when it has evidence and all of it passes. `make evidence` measures everything again.

"""


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run, in the order of their tests.

    Raises:
        DataError: There is no such folder, or a line is no record.
    """
    if not folder.is_dir():
        raise DataError(f"records must be a folder that pytest --evidence=... wrote, got {folder}")
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number} is no record: {error}") from error
    return sorted(found, key=lambda record: record["test"])


def standings_of(records: Iterable[dict[str, Any]]) -> dict[str, Standing]:
    """Return the standing of every paper after a run."""
    by_paper: dict[str, list[dict[str, Any]]] = {key: [] for key in papers()}
    for record in records:
        for key in record["papers"]:
            if key not in by_paper:
                raise DataError(f"a record must name a paper of papers.csv, got {key!r}")
            by_paper[key].append(record)
    return {key: _standing(papers()[key], found) for key, found in by_paper.items()}


def to_markdown(table: dict[str, Standing], measured_with: str) -> str:
    """Return the page of all papers by family."""
    working = sum(standing.works for standing in table.values())
    lines = [f"**{working} of {len(table)} papers work.** {measured_with}", ""]
    for family, purpose in PURPOSES.items():
        known = [p for p in papers().values() if p.family == family]
        done = sum(table[p.key].works for p in known)
        lines += [f"## {family}: {done} of {len(known)}", "", f"{purpose[0].upper()}{purpose[1:]}."]
        lines += ["", "| paper | works | methods | measured here | the paper's own claim | s |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [_row(p, table[p.key]) for p in known]
        lines += [""]
    return HEAD + "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write both tables; see the top of the file."""
    parser = argparse.ArgumentParser(prog="python -m actkit.evidence")
    parser.add_argument("records", type=Path, nargs="?", help="what pytest --evidence=... wrote")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the tables are")
    parser.add_argument("--keep", action="store_true", help="keep papers that were not run")
    given = parser.parse_args(arguments)
    path = given.docs / "evidence.json"
    if given.records is None:
        stored = json.loads(path.read_text(encoding="utf-8"))
        table = {key: Standing() for key in papers()} | _stored(stored)
        measured_with = stored["measured_with"]
    else:
        table, measured_with = standings_of(read_records(given.records)), _machine()
        if given.keep:
            old = _stored(json.loads(path.read_text(encoding="utf-8")))
            table = {k: s if s.tests else old.get(k, s) for k, s in table.items()}
        rows = {key: asdict(standing) for key, standing in table.items()}
        facts = {"measured_with": measured_with, "papers": rows}
        path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = given.docs / "evidence.md"
    page.write_text(to_markdown(table, measured_with), encoding="utf-8")


def _stored(stored: dict[str, Any]) -> dict[str, Standing]:
    return {key: Standing.of(row) for key, row in stored["papers"].items()}


def _machine() -> str:
    return (
        f"Measured with actkit {version('actkit')}, torch {version('torch')}, Python "
        f"{platform.python_version()} on {os.cpu_count()} cores ({platform.machine()})."
    )


def _standing(paper: Paper, records: list[dict[str, Any]]) -> Standing:
    if not records:
        return Standing(methods=_methods(paper, records))
    notes = [f"{r['test']}: {r['note']}" for r in records if r["outcome"] != "passed"]
    return Standing(
        works=not notes,
        methods=_methods(paper, records),
        figures=tuple(Figure(**figure) for r in records for figure in r["figures"]),
        tests=tuple(r["test"] for r in records),
        seconds=round(sum(r["seconds"] for r in records), 1),
        note="; ".join(notes),
    )


def _methods(paper: Paper, records: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the methods whose source is the paper, then those whose own tests bear its mark."""
    files = {Path(record["test"].partition("::")[0]) for record in records}
    mirrors = {(*file.parts[1:3], file.stem.removeprefix("test_")) for file in files}
    return tuple(
        e.name
        for e in methods()
        if (paper.arxiv and paper.arxiv in e.arxiv) or (e.family, e.chapter, e.name) in mirrors
    )


def _row(paper: Paper, standing: Standing) -> str:
    title = _plain(paper.title)
    if paper.arxiv:
        title = f"[{title}](https://arxiv.org/abs/{paper.arxiv})"
    state = "works" if standing.works else "not yet"
    if standing.tests and standing.note:
        state += f": {_plain(standing.note)}"
    cells = (
        f"{title} `{paper.key}`",
        state,
        ", ".join(f"`{name}`" for name in standing.methods),
        "<br>".join(_plain(str(figure)) for figure in standing.figures),
        _plain(paper.headline),
        f"{standing.seconds:.1f}" if standing.tests else "",
    )
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, in one table cell."""
    for mark in "\\|<*_`[]":
        text = text.replace(mark, f"\\{mark}" if mark != "<" else "&lt;")
    return " ".join(text.split())


if __name__ == "__main__":
    main()
