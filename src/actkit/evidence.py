"""The evidence table: from what marked tests recorded to `evidence.json` and `evidence.md`.

    python -m actkit.evidence [RECORDS] [--docs docs] [--keep]
    python -m actkit.evidence --check | --stale | --changed REVISION | --digests

RECORDS is a folder of JSON lines, one per marked test, as `pytest --evidence=RECORDS` writes it.
Without it only `evidence.md` is written again, from `evidence.json`.

A row keeps the digest of the code that it was measured on (`actkit.digests`). Where the code has
another one today the row is stale: `--check` fails and says which, `--stale` prints their keys.
`--digests` records today's digests without measuring anything: whoever calls it vouches that the
numbers of every row are still those of the code.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from actkit.catalog import methods
from actkit.core.errors import DataError
from actkit.digests import REPOSITORY, Code
from actkit.papers import PURPOSES, MeasuredFigure, Paper, Standing, papers

Row = dict[str, Any]
"""A row of `evidence.json`: a `Standing`, and the digest of the code that it was measured on."""
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


def stale(rows: Mapping[str, Row], code: Code) -> dict[str, str]:
    """Return the papers whose rows were measured on other code than today's, and why."""
    found = {key: _why_stale(key, rows.get(key, {}), code) for key in papers()}
    return {key: why for key, why in found.items() if why}


def changed(rows: Mapping[str, Row], before: Mapping[str, Row]) -> list[str]:
    """Return the papers whose rows were measured on other code than those of an earlier table.

    Rows of a table from before digests were kept do not count.
    """
    found = []
    for key, row in rows.items():
        old = before.get(key, {})
        undated = bool(old.get("tests")) and "digest" not in old
        if row["tests"] and not undated and row.get("digest") != old.get("digest"):
            found.append(key)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Write both tables, or compare rows with the code; see the top of the file."""
    given = _parser().parse_args(arguments)
    path = given.docs / "evidence.json"
    if given.records is not None:
        _store(path, _measured(given, path))
    stored = json.loads(path.read_text(encoding="utf-8"))
    rows = stored["papers"]
    if given.check:
        _check(stale(rows, Code(given.root)))
    elif given.stale:
        sys.stdout.write(",".join(stale(rows, Code(given.root))) + "\n")
    elif given.changed:
        sys.stdout.write(",".join(changed(rows, _rows_at(given.changed, path))) + "\n")
    elif given.digests:
        _store(path, stored | {"papers": _vouched(rows, Code(given.root))})
    else:
        table = {key: Standing() for key in papers()}
        table |= {key: Standing.of(row) for key, row in rows.items()}
        page = given.docs / "evidence.md"
        page.write_text(to_markdown(table, stored["measured_with"]), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m actkit.evidence")
    parser.add_argument("records", type=Path, nargs="?", help="what pytest --evidence=... wrote")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the tables are")
    parser.add_argument("--root", type=Path, default=REPOSITORY, help="where the code is")
    parser.add_argument("--keep", action="store_true", help="keep papers that were not run")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--check", action="store_true", help="fail where a row is stale")
    instead.add_argument("--stale", action="store_true", help="print the papers of stale rows")
    instead.add_argument("--changed", metavar="REVISION", help="print papers measured since then")
    instead.add_argument("--digests", action="store_true", help="vouch for all rows as they stand")
    return parser


def _measured(given: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Return the table of a run, with the digests of the code that it ran."""
    code, table = Code(given.root), standings_of(read_records(given.records))
    rows = {key: asdict(s) | {"digest": _digest(key, s, code)} for key, s in table.items()}
    if given.keep:
        old = json.loads(path.read_text(encoding="utf-8"))["papers"]
        rows = {key: row if row["tests"] else old.get(key, row) for key, row in rows.items()}
    return {"measured_with": _machine(), "papers": rows}


def _store(path: Path, facts: dict[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _digest(key: str, standing: Standing, code: Code) -> str:
    """Return the digest of the code that a row was measured on, empty if a test was left out."""
    if not standing.tests or _unlike(key, standing.tests, code):
        return ""
    return code.digest(key, standing.methods)


def _why_stale(key: str, row: Row, code: Code) -> str:
    tests = tuple(row.get("tests", ()))
    if why := _unlike(key, tests, code):
        return why
    try:
        today = code.digest(key, tuple(row["methods"])) if tests else row.get("digest")
    except DataError as error:
        return str(error)
    if today == row.get("digest"):
        return ""
    return "its tests or methods changed" if row.get("digest") else "no digest was recorded"


def _unlike(key: str, tests: Sequence[str], code: Code) -> str:
    """Return how the tests of a row differ from those that bear the paper's mark, by name."""
    measured = {test.partition("[")[0].rpartition("::")[2] for test in tests}
    marked = {name for _, name in code.marked.get(key, ())}
    if new := sorted(marked - measured):
        return f"not measured: {', '.join(new)}"
    if gone := sorted(measured - marked):
        return f"bears the mark no more: {', '.join(gone)}"
    return ""


def _check(found: Mapping[str, str]) -> None:
    if not found:
        return
    lines = [f"stale: {key}: {why}" for key, why in found.items()]
    raise SystemExit("\n".join([*lines, "measure these again: make evidence PAPERS=stale"]))


def _vouched(rows: Mapping[str, Row], code: Code) -> dict[str, Row]:
    """Return the rows with today's digests, and with the files where their tests are today."""
    found = {}
    for key, row in rows.items():
        if why := _unlike(key, row["tests"], code):
            raise DataError(f"only what was measured can be vouched for, {key}: {why}")
        where = {name: code.file(module) for module, name in code.marked.get(key, ())}
        tests = [
            test if (code.root / test.partition("::")[0]).exists() else _moved(test, where)
            for test in row["tests"]
        ]
        digest = code.digest(key, tuple(row["methods"])) if tests else ""
        found[key] = row | {"tests": tests, "digest": digest}
    sys.stdout.write(
        f"digests of {sum(bool(row['digest']) for row in found.values())} papers recorded, "
        "nothing measured: you vouch that their numbers are those of this code\n"
    )
    return found


def _moved(test: str, where: Mapping[str, str]) -> str:
    name = test.rpartition("::")[2]
    return f"{where[name.partition('[')[0]]}::{name}"


def _rows_at(revision: str, path: Path) -> dict[str, Row]:
    """Return the rows of the table as a commit holds it.

    Raises:
        DataError: The commit has no such table.
    """
    command = ["git", "-C", str(path.parent), "show", f"{revision}:./{path.name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"{revision} must hold {path}: {done.stderr.strip()}")
    rows: dict[str, Row] = json.loads(done.stdout)["papers"]
    return rows


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
        figures=tuple(MeasuredFigure(**figure) for r in records for figure in r["figures"]),
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
