"""A scan of a tiny network is what it was: its words, its pictures' names and its numbers.

`tiny_scan.json` was written before questions moved into files of their own; questions that came
later are not in it. `python -m tests.scanning.test_pinned` writes it anew, for a change that is
meant.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

import actkit as ak
from tests.core import tiny

PATH = Path(__file__).with_name("tiny_scan.json")
TEXTS = [" ".join(f"w{(7 * i + j * j) % 88 + 1}" for j in range(23 + i)) for i in range(20)]
NUMBER = re.compile(r"\d[\d,]*(\.\d+)?(e-?\d+)?")
SEARCHED = "needed"
"""The question whose numbers are found by steps, which rounding may move by one."""


def pinned(page: dict[str, Any]) -> dict[str, Any]:
    """Return a page's words with # for each number, and its numbers apart."""
    answer = page["answer"]
    figures = [{**f, "series": [*f["series"]], "x": f["x"]} for f in page["figures"]]
    for figure in figures:
        del figure["log"]  # as wide as the numbers are apart
    own, *_ = answer["values"].values()
    return {
        "key": page["key"],
        "question": page["question"],
        "note": page["note"],
        "findings": [NUMBER.sub("#", f) for f in page["findings"] if "untrained" not in f],
        "what": answer["what"],
        "percent": answer["percent"],
        "beside": [*answer["values"]],
        "figures": figures,
        "value": own,
        "numbers": page["numbers"],
    }


def scanned() -> list[dict[str, Any]]:
    report = json.loads(ak.scan(tiny.model(), TEXTS).to_json())
    return [pinned(page) for page in report["pages"]]


@pytest.fixture(scope="module")
def pages() -> dict[str, tuple[Any, Any]]:
    found = {page["key"]: page for page in scanned()}
    kept = {page["key"]: page for page in json.loads(PATH.read_text(encoding="utf-8"))}
    assert [key for key in found if key in kept] == [*kept]
    return {key: (found[key], kept[key]) for key in kept}


def test_every_word_is_as_it_was(pages: dict[str, tuple[Any, Any]]) -> None:
    for found, kept in pages.values():
        words = found.keys() - {"value", "numbers"}
        assert {k: found[k] for k in words} == {k: kept[k] for k in words}
        assert {site: [*row] for site, row in found["numbers"].items()} == {
            site: [*row] for site, row in kept["numbers"].items()
        }


def test_every_number_is_as_it_was(pages: dict[str, tuple[Any, Any]]) -> None:
    compared = 0
    for key, (found, kept) in pages.items():
        if key == SEARCHED:
            continue
        assert found["value"] == pytest.approx(kept["value"], rel=1e-3)
        for site, row in kept["numbers"].items():
            want = {k: math.nan if v is None else v for k, v in row.items()}
            got = {k: math.nan if v is None else v for k, v in found["numbers"][site].items()}
            assert got == pytest.approx(want, rel=1e-3, abs=1e-5, nan_ok=True), (key, site)
            compared += len(row)
    assert compared > 100


if __name__ == "__main__":
    PATH.write_text(json.dumps(scanned(), indent=1) + "\n", encoding="utf-8")
