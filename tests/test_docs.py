"""The site builds without a warning, and what its pages show runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from actkit.catalog import methods

ROOT = Path(__file__).parents[1]
PAGES = [p for p in sorted((ROOT / "docs").glob("*.md")) if "```python" in p.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.slow
def test_site_builds_in_strict_mode(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    for entry in methods():
        page = (tmp_path / "methods" / entry.family / entry.name / "index.html").read_text()
        assert entry.summary.partition("'")[0] in page
    assert "Add a method" in (tmp_path / "contributing" / "index.html").read_text()


def test_examples_import_public_names_only() -> None:
    """What a docstring shows can be typed by its reader: no file or name with an underscore."""
    private = re.compile(
        r"^\s*(?:>>>|\.\.\.) .*(?:from|import) actkit[\w.]*(?:\._\w| import .*\b_\w)"
    )
    files = sorted((ROOT / "src").rglob("*.py"))
    lines = [(file.name, line) for file in files for line in file.read_text().splitlines()]
    assert len(files) > 100
    assert [found for found in lines if private.match(found[1])] == []
    assert private.match("    >>> from actkit.trace._task import Task")
    assert private.match("    >>> from actkit.trace import _task")
