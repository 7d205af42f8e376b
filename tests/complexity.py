"""Counts the branches of functions, those inside expressions too.

A function's complexity is one, and one more for every way to go on elsewhere: `if`, `for`, `while`,
`except`, a case of `match`, a conditional expression, every `and` and `or`, every filter of a
comprehension. A function inside another one counts by itself.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case, ast.IfExp)


class Function(NamedTuple):
    """A function of a source file."""

    path: Path
    line: int
    name: str
    complexity: int
    lines: int


def functions(path: Path) -> Iterator[Function]:
    """Yield the functions of a file, also those inside others."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, FUNCTIONS):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            yield Function(path, node.lineno, node.name, complexity(node), lines)


def complexity(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return a function's complexity."""
    return 1 + sum(map(_branches, function.body))


def _branches(node: ast.AST) -> int:
    """Return the branches of a node and all in it, but for functions inside."""
    if isinstance(node, FUNCTIONS):
        return 0
    own = int(isinstance(node, BRANCHES))
    if isinstance(node, ast.BoolOp):
        own = len(node.values) - 1
    if isinstance(node, ast.comprehension):
        own = len(node.ifs)
    return own + sum(map(_branches, ast.iter_child_nodes(node)))
