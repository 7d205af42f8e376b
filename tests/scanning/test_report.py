import json
import math
from pathlib import Path

import pytest

import actkit as ak
from actkit.scanning.answer import Page
from actkit.scanning.report import Report
from tests.scanning import made


def test_json_is_the_report_with_null_for_what_is_no_number() -> None:
    found = json.loads(made.report().to_json(), parse_constant=pytest.fail)
    assert list(found) == ["title", "about", "pages"]
    assert found["about"] == {
        "data": f"all 3 tokens of {made.HOSTILE}", "seed": None, "settings": {"num_tokens": 3},
    }  # fmt: skip
    page = found["pages"][0]
    assert list(page) == ["key", "question", "findings", "figures", "numbers", "note", "answer"]
    assert page["answer"] == {
        "what": "length", "values": {"this": 2.5, made.HOSTILE: None}, "usual": {"that": 1e6},
        "percent": False,
    }  # fmt: skip
    assert page["findings"] == [f"It is {made.HOSTILE}.", "A second one."]
    assert page["numbers"] == {
        "site.0": {"mean": 1.5, "count": 3}, "site.1": {"mean": None, "low": None},
    }  # fmt: skip
    assert page["figures"][0] == {
        "kind": "lines", "title": "Length", "x": ["0", "1", "2"], "x_title": "layer",
        "y_title": "L2 norm", "series": {"mean": [1.5, 20.0, 3.0], "low": [0.0, None, 0.25]},
        "log": False, "percent": False, "beside": [],
    }  # fmt: skip
    assert [len(p["figures"]) for p in found["pages"]] == [3, 1, 2]


def test_numbers_survive_json_to_the_last_bit() -> None:
    value = math.pi * 1e-7
    page = Page("k", "Q?", (), (), {"site": {"value": value}})
    text = Report("t", {}, (page,)).to_json()
    assert json.loads(text)["pages"][0]["numbers"]["site"]["value"] == value


def test_files_hold_what_is_returned_and_folders_are_made(tmp_path: Path) -> None:
    report = made.report()
    path = tmp_path / "a" / "b" / "report.json"
    assert report.to_json(path) == path.read_text(encoding="utf-8")
    page = report.to_html(str(tmp_path / "c" / "index.html"))
    assert page == tmp_path / "c" / "index.html"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_file_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for write in (made.report().to_html, made.report().to_json):
        with pytest.raises(ak.errors.ActkitError, match=r"can be written, got .*file/index"):
            write(tmp_path / "file" / "index")
        with pytest.raises(ak.errors.ActkitError, match=r"can be written, got .*: Is a directory"):
            write(tmp_path)
