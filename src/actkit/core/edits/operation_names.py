"""Finds the class of an operation by the name that a file has of it.

A class that nobody has imported yet is looked for in the source files of this package, so that no
list of operations has to be kept anywhere: the class says its names, and where it lies is free.
"""

import ast
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path

from actkit.core.edits.operation import REGISTERED, Operation
from actkit.core.folder import module_name

_PACKAGE = __name__.partition(".")[0]


def operation_named(name: str) -> type[Operation]:
    """Return the class that a file means; of other packages only what is imported already.

    Raises:
        ValueError: There is none.
    """
    if name not in REGISTERED and name in _homes():
        import_module(_homes()[name])
    if name not in REGISTERED:
        raise ValueError(f"unknown operation {name!r}")
    return REGISTERED[name]


@cache
def _homes() -> dict[str, str]:
    """Return the module of every name that a class of this package gives itself."""
    root = Path(str(files(_PACKAGE)))
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "identifier" in text:  # most files have none and need not be parsed
            module = module_name(Path(_PACKAGE) / path.relative_to(root))
            found |= dict.fromkeys(names_given(ast.parse(text)), module)
    return found


def names_given(tree: ast.Module) -> Iterator[str]:
    """Yield what the classes of a file are called in edit files, now and formerly.

    Example:
        >>> list(names_given(ast.parse("class Turn(Operation): identifier = 'turn.turn'")))
        ['turn.turn']
    """
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for statement in (statement for node in classes for statement in node.body):
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
            continue
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        if {ast.unparse(target) for target in targets} & {"identifier", "formerly"}:
            constants = [n for n in ast.walk(statement.value) if isinstance(n, ast.Constant)]
            yield from (n.value for n in constants if isinstance(n.value, str))
