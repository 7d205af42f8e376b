"""From what marked tests recorded to the two tables."""

import json
from pathlib import Path
from typing import Any

import pytest

from actkit.core.errors import DataError
from actkit.evidence import main, read_records, standings_of, to_markdown
from actkit.papers import MeasuredFigure, Standing, papers

KEY = "massive-activations-large-language"


def record(**changes: Any) -> dict[str, Any]:
    figure = {"what": "ratio", "measured": 1234.5678, "bound": ">= 1000", "holds": True}
    return {
        "test": "tests/steer/test_x.py::test_one",
        "papers": [KEY],
        "outcome": "passed",
        "note": "",
        "seconds": 1.26,
        "figures": [figure],
        **changes,
    }


def write(folder: Path, **workers: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    for worker, records in workers.items():
        text = "".join(json.dumps(r) + "\n" for r in records)
        (folder / f"{worker}.jsonl").write_text(text)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> list[str]:
    """Options for a repository without code, whose digests cost nothing."""
    for folder in ("src/actkit", "tests"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    return ["--root", str(tmp_path / "root")]


def test_records_of_all_workers_are_read_in_order_of_tests(tmp_path: Path) -> None:
    one, two, three = (record(test=f"t.py::{name}") for name in "abc")
    assert read_records(write(tmp_path, gw0=[three, one], gw1=[two])) == [one, two, three]


def test_every_paper_stands_and_only_those_with_evidence_work() -> None:
    table = standings_of([record()])
    assert list(table) == list(papers())
    assert [key for key, standing in table.items() if standing.works] == [KEY]
    assert table[KEY] == Standing(
        works=True,
        methods=("massive", "kv_bias_attention"),
        figures=(MeasuredFigure("ratio", 1234.5678, ">= 1000", holds=True),),
        tests=("tests/steer/test_x.py::test_one",),
        seconds=1.3,
        note="",
    )
    assert table["mish"] == Standing()
    assert table["mish"].note == "no evidence yet"


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_one_bad_test_and_the_paper_does_not_work(outcome: str) -> None:
    bad = record(test="tests/z.py::bad", outcome=outcome, note=f"{outcome}, because")
    table = standings_of([record(), bad])
    assert not table[KEY].works
    assert table[KEY].note == f"tests/z.py::bad: {outcome}, because"
    assert len(table[KEY].figures) == 2
    assert table[KEY].seconds == 2.5


def test_one_test_may_speak_for_two_papers() -> None:
    table = standings_of([record(papers=[KEY, "tinytl"])])
    assert table[KEY].works and table["tinytl"].works
    assert table["tinytl"].methods == ()


def test_a_test_that_mirrors_a_method_names_it() -> None:
    mirror = record(test="tests/read/streaming/test_moments.py::test_x", papers=["tinytl"])
    assert standings_of([mirror])["tinytl"].methods == ("moments",)


def test_page_holds_all_papers_and_escapes_what_would_break_a_table() -> None:
    odd = record(figures=[{"what": "a|b", "measured": None, "bound": "<= 1", "holds": False}])
    page = to_markdown(standings_of([odd]), "Measured here.")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) == 281
    assert page.count("| not yet |") == 280
    assert "**1 of 281 papers work.** Measured here." in page
    (row,) = [r for r in rows if f"`{KEY}`" in r]
    assert row.replace("\\|", "").count("|") == 7
    assert "a\\|b not finite (&lt;= 1)" in row
    assert "https://arxiv.org/abs/2402.17762" in row and "`massive`" in row


def test_tables_are_written_and_can_be_written_again(tmp_path: Path, root: list[str]) -> None:
    main([str(write(tmp_path / "records", main=[record()])), "--docs", str(tmp_path), *root])
    stored = json.loads((tmp_path / "evidence.json").read_text())
    assert Standing.of(stored["papers"][KEY]) == standings_of([record()])[KEY]
    assert "torch" in stored["measured_with"]
    page = (tmp_path / "evidence.md").read_text()
    (tmp_path / "evidence.md").unlink()
    main(["--docs", str(tmp_path)])
    assert (tmp_path / "evidence.md").read_text() == page


def test_a_run_of_a_part_keeps_the_rest_only_when_asked(tmp_path: Path, root: list[str]) -> None:
    def run(*options: str, **changes: Any) -> dict[str, Any]:
        folder = write(tmp_path / "records", main=[record(**changes)])
        main([str(folder), "--docs", str(tmp_path), *root, *options])
        rows: dict[str, Any] = json.loads((tmp_path / "evidence.json").read_text())["papers"]
        return {key: row["seconds"] for key, row in rows.items() if row["works"]}

    assert run(papers=["tinytl"]) == {"tinytl": 1.3}
    assert run("--keep") == {"tinytl": 1.3, KEY: 1.3}
    assert run("--keep", seconds=7) == {"tinytl": 1.3, KEY: 7.0}
    assert run() == {KEY: 1.3}


def test_bad_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be a folder"):
        read_records(tmp_path / "none")
    (tmp_path / "gw0.jsonl").write_text('{"test": "a"}\n{"test"')
    with pytest.raises(DataError, match=r"gw0\.jsonl, line 2 is no record"):
        read_records(tmp_path)
    with pytest.raises(DataError, match="got 'nothing'"):
        standings_of([record(papers=["nothing"])])


def test_stored_tables_are_what_the_generator_writes(tmp_path: Path) -> None:
    docs = Path(__file__).parents[1] / "docs"
    (tmp_path / "evidence.json").write_text((docs / "evidence.json").read_text())
    main(["--docs", str(tmp_path)])
    assert (tmp_path / "evidence.md").read_text() == (docs / "evidence.md").read_text()
