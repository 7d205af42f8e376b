"""No function has more branches than a reader can hold, and no line is packed by hand."""

import ast
from pathlib import Path

import pytest

from tests.complexity import FUNCTIONS, complexity, functions

SRC = Path(__file__).parents[1] / "src"
MOST = 10

# What is still above: a list to be emptied, which the test holds to what is true.
PACKED: set[str] = set()


def _of(source: str) -> int:
    """Return the complexity of the first function of a source text."""
    found = next(n for n in ast.walk(ast.parse(source)) if isinstance(n, FUNCTIONS))
    return complexity(found)


def _above(folder: Path) -> set[str]:
    """Return the functions of a folder that have too many branches, as "path name"."""
    files = sorted(folder.rglob("*.py"))
    found = [f for path in files for f in functions(path) if f.complexity > MOST]
    return {f"{f.path.relative_to(folder).as_posix()} {f.name}" for f in found}


def _formatter_switched_off(folder: Path) -> list[str]:
    """Return the lines of a folder's files that keep the formatter out, as "path:line"."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            comment = line.partition("#")[2].replace(" ", "")
            if comment.startswith(("fmt:skip", "fmt:off", "yapf:disable")):
                found.append(f"{path.relative_to(folder).as_posix()}:{number}")
    return found


def test_no_function_has_too_many_branches() -> None:
    assert _above(SRC) == PACKED


def test_ruff_lays_out_every_line() -> None:
    assert _formatter_switched_off(SRC) == []


def test_a_planted_function_is_caught(tmp_path: Path) -> None:
    branches = "\n".join(f"    if x == {i}:\n        return {i}" for i in range(MOST))
    (tmp_path / "planted.py").write_text(f"def packed(x):\n{branches}\n    return x\n")
    (tmp_path / "plain.py").write_text("def plain(x):\n    return x or 1\n")
    assert _above(tmp_path) == {"planted.py packed"}


@pytest.mark.parametrize("switch", ["# fmt: skip", "# fmt:skip", "# fmt: off"])
def test_a_planted_switch_is_caught(tmp_path: Path, switch: str) -> None:
    (tmp_path / "planted.py").write_text(f"x = 1\ny = [1,  2]  {switch}\n")
    assert _formatter_switched_off(tmp_path) == ["planted.py:2"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return x", 1),
        ("if x:\n  pass", 2),
        ("if x:\n  pass\n elif y:\n  pass\n else:\n  pass", 3),
        ("for i in x:\n  pass", 2),
        ("while x:\n  pass", 2),
        ("try:\n  pass\n except A:\n  pass\n except B:\n  pass", 3),
        ("match x:\n  case 1:\n   pass\n  case _:\n   pass", 3),
        ("return 1 if x else 2", 2),
        ("return x and y", 2),
        ("return x or y or z", 3),
        ("return x and (y or z)", 3),
        ("return [i for i in x]", 1),
        ("return [i for i in x if i if i > 1]", 3),
        ("return {i: 1 for i in x if i and y}", 3),
        ("return any(i for i in x if i)", 2),
        ("return lambda y: y or x", 2),
        ("with x:\n  if y:\n   pass", 2),
        ("def inner():\n  if y:\n   pass\n return inner", 1),
    ],
)
def test_each_kind_of_branch_counts(body: str, expected: int) -> None:
    assert _of(f"def f(x):\n {body}\n") == expected


def test_functions_of_classes_and_inside_functions_count_by_themselves(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(
        "class A:\n def f(self):\n  return 1 or 2\n"
        "async def g():\n async for i in x:\n  pass\n def h():\n  return 1\n"
    )
    assert {f.name: f.complexity for f in functions(path)} == {"f": 2, "g": 2, "h": 1}
