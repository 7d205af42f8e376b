import csv
import gc
import gzip
import json
import lzma
import pickle
import sys
import tracemalloc
from collections.abc import Iterator, Sized
from hashlib import sha256
from operator import length_hint
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from actkit import data
from actkit.core.errors import DataError

TEXTS = ["One.", 'Two, "quoted"\nand broken.', "Drei: größer als zwei.", "Four"]


def hash_of(texts: list[str]) -> str:
    framed = (f"text {len(t.encode())}\n".encode() + t.encode() for t in texts)
    return sha256(b"".join(framed)).hexdigest()


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_csv(path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate(TEXTS)])
    return path


def as_parquet(path: Path) -> Path:
    pq.write_table(pa.table({"id": [1, 2, 3, 4], "text": TEXTS}), path, row_group_size=3)
    return path


def stream() -> Iterator[dict[str, Any]]:
    yield from ({"id": i, "text": t} for i, t in enumerate(TEXTS))


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Any]:
    rows = list(stream())
    packed = jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(packed.read_bytes()))
    (tmp_path / "hub").mkdir()
    jsonl(tmp_path / "hub" / "train.jsonl", rows)
    return {
        "strings": TEXTS,
        "mappings": rows,
        "jsonl": packed,
        "jsonl.gz": tmp_path / "b.jsonl.gz",
        "csv": str(as_csv(tmp_path / "c.csv")),
        "parquet": as_parquet(tmp_path / "d.parquet"),
        "folder": tmp_path / "hub",
        "dataset": datasets.Dataset.from_list(rows),
        "stream": datasets.IterableDataset.from_generator(stream),
        "hub": f"hf:{tmp_path / 'hub'}",
    }


KINDS = ["strings", "mappings", "jsonl", "jsonl.gz", "csv", "parquet", "folder", "dataset"]
KINDS += ["stream", "hub"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_samples_and_hash(kind: str, sources: dict[str, Any]) -> None:
    samples = data.load(sources[kind])
    assert list(samples) == list(samples) == TEXTS
    assert samples.hash == hash_of(TEXTS)
    known = kind in {"strings", "mappings", "parquet", "dataset"}
    assert isinstance(samples, Sized) == known
    assert length_hint(samples, -1) == (4 if known else -1)
    first = data.load(sources[kind], limit=3)
    assert list(first) == TEXTS[:3] and first.hash == hash_of(TEXTS[:3]) != samples.hash
    assert length_hint(first, -1) == (3 if known else -1)
    assert json.loads(json.dumps(first.origin))["limit"] == 3


@pytest.mark.parametrize("kind", ["strings", "jsonl", "csv", "parquet"])
def test_samples_survive_pickling(kind: str, sources: dict[str, Any]) -> None:
    samples = data.load(sources[kind])
    copy = pickle.loads(pickle.dumps(samples))
    assert list(copy) == TEXTS and copy.hash == samples.hash and repr(copy) == repr(samples)


def test_hash_knows_where_samples_end_and_needs_no_full_pass_before() -> None:
    assert data.load(["ab", "c"]).hash != data.load(["a", "bc"]).hash
    samples = data.load(TEXTS)
    assert next(iter(samples)) == TEXTS[0]
    assert samples.hash == hash_of(TEXTS)


def test_data_that_change_between_two_passes_are_refused() -> None:
    texts = list(TEXTS)
    samples = data.load(texts)
    assert samples.hash == hash_of(TEXTS)
    texts[3] = "Five"
    with pytest.raises(DataError, match="stay as they are between two passes"):
        list(samples)


def test_units_of_a_text_file(tmp_path: Path) -> None:
    content = "\n\n one\r\n two\n\n \nthree\n\n"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + content.encode())
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(content.encode()))
    for path in tmp_path.iterdir():
        assert list(data.load(path)) == [" one\n two", "three"]
        assert list(data.load(path, unit="line")) == [" one", " two", "three"]
        assert list(data.load(path, unit="file")) == [content.replace("\r", "")]


def test_folders_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name, content in {"c.txt": "3", "b/z.txt": "2", "a.txt": "1", ".hidden.md": "0"}.items():
        (tmp_path / name).write_text(content)
    assert list(data.load(tmp_path)) == ["1", "2", "3"]
    assert list(data.load([tmp_path / "c.txt", tmp_path / "a.txt"])) == ["3", "1"]


def test_folder_of_images(tmp_path: Path) -> None:
    for name, size, value in (("b.png", (7, 5), 40), ("a.jpeg", (9, 4), 200)):
        Image.new("L", size, value).save(tmp_path / name)
    samples = data.load(tmp_path)
    assert isinstance(samples, Sized) and len(samples) == 2
    assert [tuple(image.shape) for image in samples] == [(3, 4, 9), (3, 5, 7)]
    squares = list(data.load(tmp_path, size=6))
    assert squares[1].dtype == torch.uint8
    assert torch.equal(squares[1], torch.full((3, 6, 6), 40, dtype=torch.uint8))
    assert samples.hash != data.load(tmp_path, size=6).hash


def test_another_field(sources: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"a": "x", "b": "y"}, {"a": "z", "b": "w"}]
    for source in (rows, jsonl(tmp_path / "o.jsonl", rows), datasets.Dataset.from_list(rows)):
        assert list(data.load(source, "b")) == ["y", "w"]


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in {"strings", "stream"}])
def test_a_missing_field_lists_the_fields(kind: str, sources: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="no field 'body'; fields: id, text;"):
        data.load(sources[kind], field="body")


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in {"strings", "stream", "csv"}])
def test_a_value_that_is_no_string_names_its_row(kind: str, sources: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"(row 0|line 1), field 'id': .* string, got int \d"):
        data.load(sources[kind], field="id")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


GOOD = '{"text": "a"}\n'
BROKEN: dict[str, tuple[str | bytes, str]] = {
    "cut.jsonl": (GOOD + "\n" + '{"text": "b', r"cut\.jsonl, line 3: a line must be JSON"),
    "list.jsonl": (GOOD + "[1, 2]\n", r"line 2: a row must be an object with fields, got list"),
    "null.jsonl": (GOOD + '{"text": null}\n', r"line 2, field 'text': .* got NoneType None"),
    "other.jsonl": (GOOD + '{"Text": "b"}\n', r"line 2: no field 'text'; fields: Text;"),
    "latin.txt": (b"a\n\n\xe9t\xe9", r"latin\.txt: text must be UTF-8"),
    "short.csv": ("id,text\n1,a\n2\n", r"line 3: a row must have the header's 2 values, got 1"),
    "long.csv": ("id,text\n1,a\n2,b,c\n", r"line 3: .* 2 values, got 3"),
    "quote.csv": ('id,text\n1,"a"b\n', r"line 2: must be CSV"),
    "twice.csv": ("text,text\n1,a\n", r"no field 'text'; fields: text, text;"),
    "plain.jsonl.gz": (GOOD, r"must be readable: Not a gzipped file"),
    "cut.txt.gz": (gzip.compress(b"abc\n\n" * 999)[:-12], r"cut\.txt\.gz: the file must be read"),
    "cut.txt.xz": (lzma.compress(b"abc\n\n" * 999)[:-12], r"cut\.txt\.xz: the file must be read"),
    "fake.parquet": ("no parquet at all", r"fake\.parquet: must be a sound Parquet file"),
    "fake.png": ("no photo", r"fake\.png: a photo must be a readable image file"),
    "empty.txt": ("\n \n", r"empty\.txt: data must hold a sample, got none"),
    "empty.jsonl": ("", r"must hold a sample, got none"),
    "empty.csv": ("", r"no field 'text'; fields: none"),
    "header.csv": ("text\n", r"must hold a sample, got none"),
    "notes.md": ("a", r"must be one of \.txt .*\.parquet.*; got \.md"),
    "notes": ("a", r"must be one of .*; got no ending"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_its_place(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    with pytest.raises(DataError, match=message):
        list(data.load(write(tmp_path / name, content)))


def test_a_flipped_parquet_page_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS * 500}), path, write_page_checksum=True)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 1
    with pytest.raises(DataError, match=r"a\.parquet: .*(checksum|CRC)"):
        list(data.load(write(path, bytes(raw))))


def test_a_broken_row_deep_in_a_list_is_named() -> None:
    samples = data.load(["a", "b", 3.5])
    with pytest.raises(DataError, match=r"row 2: a text must be a string, got float 3\.5"):
        list(samples)


class Frame:
    """Behaves like a data frame: iterating gives column names."""

    def __iter__(self) -> Iterator[str]:
        return iter(["id", "text"])

    iterrows = __iter__


SPLITS = datasets.DatasetDict({"train": datasets.Dataset.from_list([{"text": "a"}])})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (iter(["a"]), "every iteration"),
        ({"a", "b"}, "every iteration"),
        (7, "every iteration"),
        (b"text", "every iteration"),
        (SPLITS, r"a mapping; pass one of \['train'\]"),
        (Frame(), r"to_dict\('records'\)"),
        ([], "must hold a sample"),
        ("Hello, world", "no file or folder 'Hello, world'; give text itself as a list"),
        ([Path("a.txt"), "b"], "row 0: no file 'a.txt'"),
        (["b", Path("a.txt")], "row 0: a list of files must hold paths only, got 'b'"),
    ],
)
def test_sources_that_are_none(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.load(source)


def test_settings_out_of_their_bounds() -> None:
    with pytest.raises(DataError, match="at least 1 sample or None, got 0"):
        data.load(["a"], limit=0)
    with pytest.raises(DataError, match="one of paragraph, line, file; got 'word'"):
        data.load(["a"], unit="word")
    with pytest.raises(DataError, match="at least 1 pixel or None, got 0"):
        data.load(["a"], size=0)


def test_folders_that_are_empty_or_mixed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must hold files, got an empty one"):
        data.load(tmp_path)
    write(tmp_path / "a.txt", "a")
    Image.new("L", (2, 2)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="all texts or all images, got both"):
        data.load(tmp_path)
    write(tmp_path / "README.md", "c")
    with pytest.raises(DataError, match=r"README\.md: the ending must be one of"):
        data.load(tmp_path)


@pytest.mark.parametrize(
    ("module", "source"), [("datasets", "hf:some/name"), ("pyarrow", "d.parquet")]
)
def test_a_missing_package_is_named_with_its_command(
    module: str, source: str, sources: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=f"run: pip install {module}$"):
        data.load(source if source.startswith("hf:") else tmp_path / source)


def test_an_unknown_hub_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"hf:.*nowhere: no such data set"):
        data.load(f"hf:{tmp_path}/nowhere")


def test_fifty_megabytes_of_jsonl_are_read_in_constant_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    line = json.dumps({"id": 1, "text": "x" * 9_973}) + "\n"
    with path.open("w") as file:
        file.writelines(line for _ in range(5_300))
    assert path.stat().st_size > 50e6
    tracemalloc.start()
    total = sum(len(sample) for sample in data.load(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 5_300 * 9_973 and peak < 1e6


def test_a_parquet_row_group_is_read_in_constant_memory(tmp_path: Path) -> None:
    texts = [f"{i:05d}" * 1_000 for i in range(6_000)]  # 30 MB in one row group
    table = pa.table({"text": texts})
    pq.write_table(table, tmp_path / "a.parquet", compression="none", use_dictionary=False)
    del table
    gc.collect()
    before = pa.total_allocated_bytes()
    allocated = [pa.total_allocated_bytes() - before for _ in data.load(tmp_path / "a.parquet")]
    assert len(allocated) == 6_000 and max(allocated) < 10e6


def test_samples_are_named_in_their_repr() -> None:
    shown = repr(data.load(["a"], limit=5))
    assert shown.startswith("CountedSamples(source='builtins.list'") and "limit=5" in shown
    assert data.load(SPLITS["train"]).origin["fingerprint"]
