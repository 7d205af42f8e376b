"""The README's tour is run line by line, as a reader would paste it."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def _blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


@pytest.mark.slow
def test_every_line_of_the_tour_runs_and_shows_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in _blocks():
        exec(compile(block, "README.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "resid_post.10" in shown and "torch.Size([1, 5, 576]) torch.Size([1, 9, 5, 5])" in shown
    assert "torch.Size([64, 576])" in shown
    plain, swapped = map(float, re.findall(r"tensor\(\[\[(.+?)\],\s+\[(.+?)\]\]", shown)[0])
    assert plain > swapped + 3, "the other prompt's stream must take Paris away"


def test_the_commands_come_first() -> None:
    first = README.read_text().split("```")[1]
    assert [line.split("#")[0].strip() for line in first.strip().splitlines()] == [
        "make run",
        "make test",
    ]
