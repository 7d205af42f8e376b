"""Results are written in one place: folders are made, errors are one line, paths come back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from actkit.comparison import Leaderboard, Run
from actkit.core.errors import DataError
from actkit.core.writing import write_text
from actkit.protocol import Measure
from actkit.trace import Scores, Task
from tests.core import tiny
from tests.scanning import made

MAP = Scores(torch.eye(2, 3), [["0", "1"], ["0", "1", "2"]], ("layer", "head"), "heads", "mine")
EDGES = Scores(
    torch.tensor([[1.0, 2.0]]), [["logits"], ["input", "head 0.0"]], ("receiver", "sender")
)
BOARD = Leaderboard(
    "t", (Measure("a"), Measure("b")), (Run("m", 0, {"a": 1.0, "b": 2.0}),), {"model": None}
)
WRITERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "scores json": ("s.json", MAP.to_json),
    "scores html": ("s.html", MAP.to_html),
    "scores plot": ("s.html", MAP.plot),
    "scores svg": ("s.svg", MAP.plot),
    "circuit": ("s.svg", EDGES.circuit),
    "neuronpedia": ("s.json", EDGES.to_neuronpedia),
    "board json": ("s.json", BOARD.to_json),
    "board plot": ("s.html", BOARD.plot),
    "report html": ("s.html", lambda path: made.report().to_html(path)),
    "report json": ("s.json", lambda path: made.report().to_json(path)),
}


@pytest.mark.parametrize(("name", "write"), WRITERS.values(), ids=WRITERS)
def test_folders_are_made(tmp_path: Path, name: str, write: Callable[[Path], Any]) -> None:
    write(tmp_path / "a" / "b" / name)
    assert (tmp_path / "a" / "b" / name).stat().st_size > 20


@pytest.mark.parametrize(("name", "write"), WRITERS.values(), ids=WRITERS)
def test_what_cannot_be_written_is_one_line(
    tmp_path: Path, name: str, write: Callable[[Path], Any]
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"can be written, got .*: (Not a dir|File exists)") as met:
        write(tmp_path / "file" / name)
    assert "\n" not in str(met.value)


def test_pages_say_where_they_are_and_are_texts_without_a_path(tmp_path: Path) -> None:
    for write, name in ((MAP.to_html, "a.html"), (EDGES.circuit, "a.svg")):
        path = write(str(tmp_path / name))
        assert path == tmp_path / name
        assert path.read_text(encoding="utf-8") == write()
    assert EDGES.to_neuronpedia(tmp_path / "a.json") == tmp_path / "a.json"
    assert write_text(tmp_path / "x.txt", "é") == tmp_path / "x.txt"


def test_long_things_have_short_names() -> None:
    m = tiny.model()
    task = Task(torch.randint(2, 9, (40, 30)), torch.randint(2, 9, (40, 30)), [3] * 40, [4] * 40)
    for thing in (task, task.on(m), made.report()):
        assert len(repr(thing)) < 200 and "\n" not in repr(thing)
    assert "Task('task', 40 pairs, metric='logit difference', at='last')" in repr(task.on(m))
    assert repr(BOARD).splitlines()[0] == "t" and "| m" in repr(BOARD)
