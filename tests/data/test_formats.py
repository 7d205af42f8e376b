"""Files as they are found: long fields, packed, listed by patterns, with gaps, with chats."""

import bz2
import csv
import json
import logging
import sys
from collections.abc import Sized
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actkit import data
from actkit.core.errors import DataError

CHATS: list[Any] = [
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
    [{"role": "user", "content": "größer?"}],
]
TEXTS = ["One.", "Two\twith\ttabs", 'Three, "quoted"']


def rows(path: Path, values: list[Any], field: str = "text") -> Path:
    lines = [json.dumps({"id": i, field: v}) + "\n" for i, v in enumerate(values)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_a_field_of_a_csv_may_be_long(tmp_path: Path) -> None:
    long = "größer, " * 60_000
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "text"], [0, "short"], [1, long], [2, "end"]])
    before = csv.field_size_limit()
    samples = data.load(tmp_path / "a.csv")
    assert list(samples) == ["short", long, "end"]
    assert csv.field_size_limit() == before == 131_072


def test_json_is_a_list_of_rows_or_lines(tmp_path: Path) -> None:
    forms = {
        "list.json": json.dumps([{"text": t, "n": 1} for t in TEXTS], indent=1),
        "strings.json": json.dumps(TEXTS),
        "lines.json": "".join(json.dumps({"text": t}) + "\n" for t in TEXTS),
    }
    for name, content in forms.items():
        (tmp_path / name).write_text(content)
        assert list(data.load(tmp_path / name)) == TEXTS, name
    broken = {
        "object.json": ('{"data": [], "version": 1}', "a list of rows, got an object with data, v"),
        "cut.json": ('[{"text": "a"}', r"cut\.json: must be JSON"),
        "row.json": ('[{"text": "a"}, {"Text": "b"}]', "row 1: no field 'text'; fields: Text"),
    }
    for name, (content, message) in broken.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=message):
            list(data.load(tmp_path / name))


def test_tsv(tmp_path: Path) -> None:
    with (tmp_path / "a.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([["text", "label"], *([t, 1] for t in TEXTS)])
    assert list(data.load(tmp_path / "a.tsv")) == TEXTS


def test_packed_files(tmp_path: Path) -> None:
    plain = rows(tmp_path / "plain.jsonl", TEXTS).read_bytes()
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(plain))
    with pa.output_stream(str(tmp_path / "b.jsonl.zst"), compression="zstd") as file:
        file.write(plain)
    for name in ("a.jsonl.bz2", "b.jsonl.zst"):
        assert list(data.load(tmp_path / name)) == TEXTS, name


@pytest.mark.parametrize("cut", [12, 200])
def test_a_damaged_zst_is_named(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "a.txt.zst"
    text = "".join(f"{i} {i * i}\n\n" for i in range(3000))
    with pa.output_stream(str(path), compression="zstd") as file:
        file.write(text.encode())
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"a\.txt\.zst: the file must be readable"):
        list(data.load(path))


def test_zst_needs_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt.zst").write_bytes(b"")
    for name in ("zstandard", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=r"\.zst needs zstandard; run: pip install zstandard$"):
        data.load(tmp_path / "a.txt.zst")


def test_patterns(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", "a.csv"):
        rows(tmp_path / name, [name])
    assert list(data.load(f"{tmp_path}/*.jsonl")) == ["a.jsonl", "b.jsonl"]
    assert list(data.load(f"{tmp_path}/**/[bc].jsonl")) == ["b.jsonl", "deep/c.jsonl"]
    with pytest.raises(DataError, match=r"no file matches the pattern .*none"):
        data.load(f"{tmp_path}/*.none")
    rows(tmp_path / "odd[1].jsonl", ["it is there"])
    assert list(data.load(tmp_path / "odd[1].jsonl")) == ["it is there"]


def test_rows_without_text_are_named_or_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = ["a", None, "b", 3, "c"]
    table = pa.table({"text": ["a", None, "b", None, "c"]})
    pq.write_table(table, tmp_path / "n.parquet")
    sources: dict[str, Any] = {
        "line 2, field 'text': a text must be": rows(tmp_path / "n.jsonl", values),
        "row 1, field 'text': a text must be a string, got NoneType": tmp_path / "n.parquet",
        "row 1: a text must be a string, got NoneType": values,
        "row 1: no field 'text'; fields: t": [{"text": "a"}, {"t": 1}, {"text": "b"}, {}, "c"],
    }
    for message, source in sources.items():
        with pytest.raises(DataError, match=message):
            list(data.load(source))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "actkit"):
            samples = data.load(source, on_bad="skip")
            assert list(samples) == ["a", "b", "c"], message
        assert not isinstance(samples, Sized) and samples.origin["on_bad"] == "skip"
        assert caplog.messages[0].startswith("rows left out: 2 (first ")
        assert message in caplog.messages[0]
    with pytest.raises(DataError, match="on_bad must be one of raise, skip; got 'drop'"):
        data.load(values, on_bad="drop")


def test_chats_are_samples(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [0, 1], "messages": CHATS}), tmp_path / "c.parquet")
    sources: dict[str, Any] = {
        "jsonl": rows(tmp_path / "c.jsonl", CHATS, "messages"),
        "parquet": tmp_path / "c.parquet",
        "mappings": [{"messages": c} for c in CHATS],
        "chats": CHATS,
    }
    hashes = set()
    for name, source in sources.items():
        samples = data.load(source, field="messages")
        assert list(samples) == list(samples) == CHATS, name
        hashes.add(samples.hash)
    assert len(hashes) == 1
    assert data.load(CHATS[:1], field="messages").hash not in hashes
    with pytest.raises(DataError, match="no field 'text'; fields: id, messages; choose with"):
        list(data.load(sources["jsonl"]))
