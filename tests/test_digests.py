"""The digest of a paper's code stays when code moves and differs when code does something else."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from actkit.core.errors import DataError
from actkit.digests import Code
from actkit.evidence import changed, main, stale
from actkit.papers import papers

KEY, OTHER = "massive-activations-large-language", "tinytl"
METHOD = '''
"""Say how large a row is."""
from actkit.catalog import method
from actkit.core.model import Model
from actkit.read import _rows
from actkit.read._rows import UNIT as ONE

SPARE = 1

@method(source="Someone 2020")
def size(acts):
    """Return it."""
    return _rows.norm(acts) * ONE
'''
ROWS = """
UNIT = 2.0

def norm(acts):
    return _root((acts * acts).sum())

def _root(x):
    return x**0.5

def unused(x):
    return x
"""
TEST = f'''
import pytest
import actkit as ak
from actkit.read.spectra.size import size
from tests._help import near

KEY = "{KEY}"

@pytest.fixture
def acts(whole):
    return whole[1:]

@pytest.mark.paper(KEY)
def test_it_is_large(acts, evidence):
    evidence("size", measured=size(acts), at_least=near(3))

def test_it_is_no_evidence():
    assert size is not None
'''
MARKS = "@pytest.mark.slow\n@pytest.mark.paper(KEY)"
FILES = {
    "src/actkit/read/spectra/size.py": METHOD,
    "src/actkit/read/_rows.py": ROWS,
    "src/actkit/read/__init__.py": "",
    "src/actkit/core/model.py": "class Model: pass",
    "tests/read/test_size.py": TEST,
    "tests/read/conftest.py": "import pytest\n@pytest.fixture\ndef whole(): return [5.0, 4.0]\n",
    "tests/_help.py": "def near(x): return x - 0.1\n",
}


def repository(root: Path, files: Mapping[str, str]) -> Code:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Code(root)


def digest(root: Path, files: Mapping[str, str], *methods: str) -> str:
    return repository(root, files).digest(KEY, methods or ("size",))


def edited(name: str, *changes: tuple[str, str]) -> dict[str, str]:
    text = FILES[name]
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return FILES | {name: text}


ANOTHER = [
    ("src/actkit/read/spectra/size.py", ("* ONE", "+ ONE")),
    ("src/actkit/read/_rows.py", ("0.5", "0.25")),
    ("src/actkit/read/_rows.py", ("2.0", "2")),
    ("tests/read/test_size.py", ("near(3)", "near(2)")),
    ("tests/read/test_size.py", ("whole[1:]", "whole")),
    ("tests/read/conftest.py", ("4.0", "3.0")),
    ("tests/_help.py", ("0.1", "0.2")),
]
ALIKE = [
    ("src/actkit/read/spectra/size.py", ("Return it", "Return that")),
    (
        "src/actkit/read/spectra/size.py",
        ("def size(acts):", "def size(acts: float) -> float:  # of acts"),
    ),
    ("src/actkit/read/spectra/size.py", ("SPARE = 1", "SPARE = 2")),
    ("src/actkit/read/_rows.py", ("return x\n", "return x + 1\n")),
    ("src/actkit/core/model.py", ("pass", "size = 1")),
    ("tests/read/test_size.py", ("is not None", "is size")),
    ("tests/read/test_size.py", ("import actkit as ak", "import math")),
    ("tests/read/test_size.py", ("@pytest.mark.paper(KEY)", MARKS)),
]


@pytest.mark.parametrize(("name", "change"), ANOTHER)
def test_what_the_evidence_reaches_counts(
    name: str, change: tuple[str, str], tmp_path: Path
) -> None:
    whole = digest(tmp_path / "one", FILES)
    assert len(whole) == 16
    assert digest(tmp_path / "two", edited(name, change)) != whole


@pytest.mark.parametrize(("name", "change"), ALIKE)
def test_what_changes_no_number_does_not(
    name: str, change: tuple[str, str], tmp_path: Path
) -> None:
    assert digest(tmp_path / "two", edited(name, change)) == digest(tmp_path / "one", FILES)


def test_a_move_leaves_the_digest(tmp_path: Path) -> None:
    moved = {
        "src/actkit/read/spectra/size.py": METHOD.replace(
            "actkit.read import _rows", "actkit import maths"
        )
        .replace("actkit.read._rows import UNIT as ONE", "actkit.maths import UNIT as SCALE")
        .replace("* ONE", "* SCALE")
        .replace("_rows.norm", "maths.norm"),
        "src/actkit/maths/__init__.py": "from actkit.maths.rows import norm, UNIT\n",
        "src/actkit/maths/rows.py": "from actkit.maths.roots import _root\n"
        + ROWS.replace("def _root(x):\n    return x**0.5\n", ""),
        "src/actkit/maths/roots.py": "def _root(x):\n    return x**0.5\n",
        "tests/conftest.py": FILES["tests/read/conftest.py"],
        "tests/read/similarity/test_size.py": TEST.replace("tests._help", "tests.helps.help"),
        "tests/helps/help.py": FILES["tests/_help.py"],
    }
    assert digest(tmp_path / "two", moved) == digest(tmp_path / "one", FILES)


def test_a_method_by_its_name_counts(tmp_path: Path) -> None:
    asked = edited("tests/read/test_size.py", ("size(acts)", 'ak.get("other")(acts)'))
    asked["src/actkit/read/spectra/other.py"] = METHOD.replace("size", "other").replace(
        "* ONE", "* 3"
    )
    other = asked | {"src/actkit/read/spectra/other.py": METHOD.replace("size", "other")}
    assert digest(tmp_path / "two", asked) != digest(tmp_path / "one", other)


def test_marks_are_found_as_pytest_finds_them() -> None:
    stored = json.loads((Path(__file__).parents[1] / "docs/evidence.json").read_text())
    found = {key: {name for _, name in tests} for key, tests in Code().marked.items()}
    measured = {
        key: {test.partition("[")[0].rpartition("::")[2] for test in row["tests"]}
        for key, row in stored["papers"].items()
        if row["tests"]
    }
    assert measured.items() <= found.items()


def test_what_has_no_digest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="need a repository with src/actkit and tests, got"):
        Code(tmp_path)
    code = repository(tmp_path, FILES)
    with pytest.raises(DataError, match=f"marked with {OTHER}, found none"):
        code.digest(OTHER, ("size",))
    with pytest.raises(DataError, match=r"names methods that are gone: \['breadth'\]"):
        code.digest(KEY, ("breadth",))
    odd = TEST.replace("paper(KEY)", "paper(KEY + '')")
    with pytest.raises(DataError, match=r"must hold its key, .*, tests.read.test_size has "):
        _ = repository(tmp_path, {"tests/read/test_size.py": odd}).marked


def row(**facts: Any) -> dict[str, Any]:
    measured = {"works": True, "methods": ["size"], "figures": [], "seconds": 1.0, "note": ""}
    return {**measured, "tests": ["tests/read/test_size.py::test_it_is_large[1]"], **facts}


def test_a_row_is_stale_with_a_reason(tmp_path: Path) -> None:
    code = repository(tmp_path, FILES)
    fresh = row(digest=code.digest(KEY, ("size",)))
    assert stale({KEY: fresh}, code) == {}
    assert stale({KEY: row()}, code) == {KEY: "no digest was recorded"}
    assert stale({KEY: row(digest="0")}, code) == {KEY: "its tests or methods changed"}
    assert stale({}, code) == {KEY: "not measured: test_it_is_large"}
    more = [*fresh["tests"], "tests/x.py::test_gone"]
    assert stale({KEY: row(methods=["breadth"])}, code) == {
        KEY: f"the row of {KEY} names methods that are gone: ['breadth']"
    }
    assert stale({KEY: row(tests=more)}, code) == {KEY: "bears the mark no more: test_gone"}


def test_a_row_counts_as_changed_once_it_was_measured_on_other_code() -> None:
    none, old, new = row(tests=[], digest=""), row(digest="a"), row(digest="b")
    assert changed({KEY: new, OTHER: old}, {KEY: old, OTHER: old}) == [KEY]
    assert changed({KEY: new, OTHER: none}, {KEY: none}) == [KEY]
    assert changed({KEY: new}, {}) == [KEY]
    assert changed({KEY: new}, {KEY: row()}) == []  # from before digests were kept


def test_the_command_checks_lists_and_vouches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository(tmp_path, FILES)
    table = tmp_path / "docs/evidence.json"
    table.parent.mkdir()
    table.write_text(json.dumps({"measured_with": "", "papers": {KEY: row()}}))
    options = ["--docs", str(table.parent), "--root", str(tmp_path)]

    def said(*more: str) -> str:
        main([*options, *more])
        return capsys.readouterr().out.strip()

    with pytest.raises(SystemExit, match=f"stale: {KEY}: no digest was recorded\nmeasure these"):
        main([*options, "--check"])
    assert said("--stale") == KEY
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "c"], check=True)
    assert said("--digests").startswith("digests of 1 papers recorded, nothing measured: you vouch")
    assert said("--check") == said("--stale") == said("--changed", "HEAD") == ""
    with pytest.raises(DataError, match=r"none must hold .*evidence.json: fatal"):
        main([*options, "--changed", "none"])

    new = tmp_path / "tests/read/similarity/test_size.py"
    new.parent.mkdir()
    (tmp_path / "tests/read/test_size.py").rename(new)
    said("--digests")
    (test,) = json.loads(table.read_text())["papers"][KEY]["tests"]
    assert test == "tests/read/similarity/test_size.py::test_it_is_large[1]"


def test_a_run_records_digests_of_whole_rows_only(tmp_path: Path) -> None:
    methods = ("massive", "kv_bias_attention")  # those of the paper
    own = {f"src/actkit/read/spectra/{name}.py": METHOD.replace("size", name) for name in methods}
    code = repository(tmp_path, FILES | own)
    facts = {"outcome": "passed", "note": "", "seconds": 1, "papers": [KEY]}
    figure = {"what": "size", "measured": 4.0, "bound": ">= 1", "holds": True}
    records = tmp_path / "records"
    records.mkdir()

    def recorded(*tests: str) -> str:
        lines = [facts | {"test": f"tests/t.py::{t}", "figures": [figure]} for t in tests]
        (records / "main.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        main([str(records), "--docs", str(tmp_path), "--root", str(tmp_path)])
        rows = json.loads((tmp_path / "evidence.json").read_text())["papers"]
        assert rows[OTHER]["digest"] == "" and len(rows) == len(papers())
        found: str = rows[KEY]["digest"]
        return found

    assert recorded("test_another") == ""
    assert recorded("test_it_is_large") == code.digest(KEY, methods) != code.digest(KEY, ("size",))
