"""A question of a scan is one file: what lies in the folder is asked, and nothing else."""

import json
import re
from pathlib import Path

import pytest

import actkit as ak
from actkit.scanning import questions, scan
from actkit.scanning.reference import TABLE
from tests.core import tiny

TEXTS = [" ".join(f"w{(7 * i + j * j) % 88 + 1}" for j in range(23 + i)) for i in range(20)]
FIRST = [
    "size", "sparsity", "massive", "spectrum", "sinks",
    "first_token", "voids", "dynamics", "neurons", "needed",
]  # fmt: skip
"""The questions that a scan began with."""
FOLDER = Path(questions.__file__).parent
PLANTED = """
from actkit.read.streaming.moments import Moments
from actkit.scanning.questions._base import Question
from actkit.scanning.questions._shared import figure_of

def tell(names, results, _):
    longest = max(r.norm_max for r in results)
    return [f"The longest vector is {longest:.3f} long."], [
        figure_of("Longest", names, "L2 norm", {"longest": [r.norm_max for r in results]})
    ]

QUESTION = Question(
    order={order},
    key="{key}",
    text="How long is the longest?",
    kind="stream",
    reading=Moments,
    tell=tell,
    value=lambda results: max(r.norm_max for r in results),
    what="longest vector",
)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that lies beside the questions, for files of other people."""
    monkeypatch.setattr(questions, "__path__", [*questions.__path__, str(tmp_path)])
    return tmp_path


def plant(folder: Path, name: str, order: int, key: str) -> None:
    text = PLANTED.replace("{order}", str(order)).replace("{key}", key)
    (folder / f"{name}.py").write_text(text, encoding="utf-8")


def test_the_questions_are_the_files_of_the_folder_in_their_order() -> None:
    files = {path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_")}
    asked = questions.QUESTIONS
    assert [q.key for q in asked if q.key in FIRST] == FIRST
    assert {q.key for q in asked} == files
    assert [q.order for q in asked] == sorted(q.order for q in asked)


def test_no_other_file_lists_them() -> None:
    """Else a new question would touch more than its own file."""
    listed = re.compile(r"questions\.(?!_)\w+ import|questions import (?!QUESTIONS)")
    files = [*FOLDER.parent.glob("*.py"), *FOLDER.glob("*.py")]
    assert len(files) > 10
    assert [path.name for path in files if listed.search(path.read_text(encoding="utf-8"))] == []


def test_a_file_in_the_folder_is_a_question_that_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(folder, "planted_longest", 45, "planted_longest")
    found = questions.find_questions()
    keys = [q.key for q in found if q.key in (*FIRST, "planted_longest")]
    assert keys == [*FIRST[:4], "planted_longest", *FIRST[4:]]
    monkeypatch.setattr(scan, "QUESTIONS", found)
    report = ak.scan(tiny.model(), TEXTS, num_tokens=400, questions=["planted_longest", "size"])
    size, longest = report.pages
    want = max(row["norm_max"] for row in size.numbers.values())
    assert longest.findings[0] == f"The longest vector is {want:.3f} long."
    assert longest.answer is not None and longest.answer.what == "longest vector"
    assert longest.figures[0].series["longest, untrained"]
    assert "How long is the longest?" in report.to_json()


@pytest.mark.parametrize(
    ("order", "key", "message"),
    [(10, "new", "own order, got 10 twice"), (77, "size", "own key, got size twice")],
)
def test_two_questions_of_one_place_or_one_key_are_refused(
    folder: Path, order: int, key: str, message: str
) -> None:
    plant(folder, f"planted_{order}", order, key)
    with pytest.raises(ValueError, match=message):
        questions.find_questions()


def test_every_reference_number_is_of_a_question() -> None:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    known = {q.key for q in questions.QUESTIONS}
    rows = [row for kind in table.values() for row in kind]
    assert len(rows) > 2
    assert all(row["numbers"].keys() <= known for row in rows)
