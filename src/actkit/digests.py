"""Digests of the code behind each paper's evidence, so that a change of it is seen.

A paper's digest covers the tests that bear its mark, the methods of its row, and every function,
class and constant that these reach in tests and families; not the instrument (`core` and what is
built on it), which has tests of its own. Definitions are taken as syntax trees without docstrings,
comments, imports and annotations, and as a set without places: a digest stays when code moves to
another file, when a module is renamed, and when text is formatted.
"""

import ast
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from actkit.catalog import FAMILIES, Entry, find_methods
from actkit.core.errors import DataError
from actkit.core.folder import module_name

REPOSITORY = Path(__file__).resolve().parents[2]
FOLLOWED = {*FAMILIES, "worlds", "maths", "anatomy"}
"""Rooms of actkit whose definitions are followed; tests are, too."""
UNSEEN = {"annotation", "returns", "type_params", "type_comment", "kind", "ctx"}
"""Fields of a syntax tree that change no number, or differ between versions of Python."""
DOTTED = re.compile(r"\b(?:actkit|tests)(?:\.\w+)*\.(?=\w)")
TYPES_ONLY = ("TYPE_CHECKING", "typing.TYPE_CHECKING")

Name = tuple[str, str]
"""A module and a name in it; an empty name stands for the module itself."""


@dataclass
class Module:
    """One file: what it defines, what it imports, and what it does when it is imported.

    Attributes:
        name: Its dotted name.
        defined: Statements by the name that they define.
        imported: What a name may stand for, wherever in the file it is imported.
        acting: Statements that define no name.
    """

    name: str
    defined: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imported: dict[str, set[Name]] = field(default_factory=dict)
    acting: list[ast.stmt] = field(default_factory=list)


class Code:
    """The repository's own code, read without importing any of it.

    Args:
        root: The repository's folder.

    Raises:
        DataError: It holds no `src/actkit` and `tests`.
    """

    def __init__(self, root: Path = REPOSITORY) -> None:
        if not (root / "src/actkit").is_dir() or not (root / "tests").is_dir():
            raise DataError(f"digests need a repository with src/actkit and tests, got {root}")
        self.root = root
        self._read: dict[str, Module] = {}
        self._known: dict[ast.stmt, tuple[str, set[Name]]] = {}

    def digest(self, paper: str, methods: tuple[str, ...]) -> str:
        """Return 16 hexadecimal digits for the code behind one paper's evidence.

        Args:
            paper: Its key.
            methods: The names of the methods in its row.

        Raises:
            DataError: No test bears the paper's mark, or there is no such method.
        """
        if paper not in self.marked:
            raise DataError(f"a digest needs tests that are marked with {paper}, found none")
        if missing := [name for name in methods if name not in self._methods]:
            raise DataError(f"the row of {paper} names methods that are gone: {missing}")
        roots = {self._root_of(self._methods[name]) for name in methods}
        found = self._reached(roots | self.marked[paper])
        return hashlib.sha256("".join(sorted(found)).encode()).hexdigest()[:16]

    @cached_property
    def marked(self) -> dict[str, set[Name]]:
        """The marked tests of each paper, as modules and names."""
        found: dict[str, set[Name]] = {}
        for name, path in self._paths.items():
            if not path.name.startswith("test_") or "mark.paper(" not in path.read_text("utf-8"):
                continue
            module = self._module(name)
            for test, statements in module.defined.items():
                for key in (k for s in statements for k in self._keys(s, module)):
                    found.setdefault(key, set()).add((name, test))
        return found

    def file(self, module: str) -> str:
        """Return where a module is, from the repository's folder."""
        return self._paths[module].relative_to(self.root).as_posix()

    def imported_by(self, module: str) -> set[str]:
        """Return a module and every own one that it imports, directly or not."""
        found, todo = {module}, [module]
        while todo:
            for target, _ in set().union(*self._module(todo.pop()).imported.values()):
                if target not in found:
                    found.add(target)
                    todo.append(target)
        return found

    @cached_property
    def _paths(self) -> dict[str, Path]:
        """Files by dotted name."""
        found = {}
        for top, under in ((self.root / "src", "actkit"), (self.root, "tests")):
            for path in sorted((top / under).rglob("*.py")):
                found[module_name(path.relative_to(top))] = path
        return found

    @cached_property
    def _methods(self) -> dict[str, Entry]:
        return find_methods(self.root / "src/actkit")

    def _root_of(self, method: Entry) -> Name:
        return module_name(method.path.relative_to(self.root / "src")), method.object

    def _module(self, name: str) -> Module:
        if name not in self._read:
            self._read[name] = self._parsed(name)
        return self._read[name]

    def _parsed(self, name: str) -> Module:
        tree, module = ast.parse(self._paths[name].read_text(encoding="utf-8")), Module(name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for alias, target in self._bound(node):
                    module.imported.setdefault(alias, set()).add(target)
        for statement in tree.body:
            for defined in (names := list(_defines(statement))):
                module.defined.setdefault(defined, []).append(statement)
            if not names and not _is_unseen(statement):
                module.acting.append(statement)
        return module

    def _bound(self, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Name]]:
        """Yield the names that an import of own code binds, and what each stands for."""
        for alias in node.names:
            bound, target = alias.asname or alias.name, (alias.name, "")
            if isinstance(node, ast.ImportFrom):
                inside = f"{node.module}.{alias.name}"
                target = (inside, "") if inside in self._paths else (node.module or "", alias.name)
            if target[0] in self._paths:
                yield bound, target
            if isinstance(node, ast.Import) and not alias.asname:
                top = alias.name.partition(".")[0]  # what `import actkit.core` binds
                if top in self._paths:
                    yield top, (top, "")

    def _keys(self, statement: ast.stmt, module: Module) -> Iterator[str]:
        """Yield the papers that a test's marks name; mark and key may be constants of the file."""
        for mark in getattr(statement, "decorator_list", []):
            call = _constant(mark, module)
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "paper":
                key = _constant(call.args[0], module)
                if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
                    raise DataError(
                        "a paper's mark must hold its key, as text or a constant of the file, "
                        f"{module.name} has {ast.unparse(mark)}"
                    )
                yield key.value

    def _reached(self, roots: set[Name]) -> set[str]:
        """Return the digests of all statements that some definitions reach."""
        found, seen, todo = set(), set(roots), list(roots)
        while todo:
            module, name = todo.pop()
            own = self._module(module)
            for statement in own.defined.get(name, []) + own.acting:
                digest, uses = self._taken(statement, own)
                found.add(digest)
                todo += uses - seen
                seen |= uses
        return found

    def _taken(self, statement: ast.stmt, module: Module) -> tuple[str, set[Name]]:
        """Return a statement's digest, and the definitions that it uses."""
        if statement not in self._known:
            digest = hashlib.sha256(self._text(statement, module).encode()).hexdigest()
            self._known[statement] = digest, set(self._uses(statement, module))
        return self._known[statement]

    def _uses(self, statement: ast.stmt, module: Module) -> Iterator[Name]:
        """Yield the followed definitions whose names a statement holds."""
        for node in _nodes(statement):
            if isinstance(node, ast.Name):
                yield from self._resolved((module.name, node.id))
            elif isinstance(node, ast.Attribute):
                for whole in self._modules_of(node.value, module):
                    yield from self._resolved((whole, node.attr))
            elif isinstance(node, ast.arg):
                yield from self._fixture(node.arg, module)
            elif isinstance(node, ast.Call) and (method := self._asked(node)):
                yield self._root_of(method)

    def _resolved(self, name: Name) -> Iterator[Name]:
        """Yield where a name is defined, through files that only hand it on."""
        module, inside = name
        if not _is_followed(module):
            return
        own = self._module(module)
        if inside in own.defined:
            yield name
        for target in own.imported.get(inside, ()):
            if target[1] and target != name:
                yield from self._resolved(target)

    def _modules_of(self, node: ast.expr, module: Module) -> set[str]:
        """Return the modules that an expression may stand for, none if it is no module."""
        if isinstance(node, ast.Name):
            return {whole for whole, name in module.imported.get(node.id, ()) if not name}
        if isinstance(node, ast.Attribute):
            inside = {f"{m}.{node.attr}" for m in self._modules_of(node.value, module)}
            return inside & self._paths.keys()
        return set()

    def _fixture(self, name: str, module: Module) -> Iterator[Name]:
        """Yield the fixture that a test asks for by its argument's name."""
        top, *inner = module.name.split(".")
        if top != "tests":
            return
        folders = [".".join([top, *inner[:depth]]) for depth in range(len(inner))]
        for place in (module.name, *(f"{folder}.conftest" for folder in folders)):
            if place in self._paths:
                yield from self._resolved((place, name))

    def _asked(self, node: ast.Call) -> Entry | None:
        """Return the method of `ak.get("name")`."""
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        name = node.args[0] if called == "get" and node.args else None
        return self._methods.get(str(name.value)) if isinstance(name, ast.Constant) else None

    def _text(self, node: ast.AST, module: Module) -> str:
        """Return a tree as text that is the same wherever it stands, on every Python."""
        if isinstance(node, ast.Name | ast.Attribute) and self._modules_of(node, module):
            return "module"
        if isinstance(node, ast.Name):
            names = sorted(name for _, name in module.imported.get(node.id, ()))
            return f"Name({','.join(names) or node.id})"
        if isinstance(node, ast.Constant):
            return _constant_text(node.value)
        fields = (
            f"{name}={self._value_text(value, module)}"
            for name, value in ast.iter_fields(node)
            if name not in UNSEEN and value not in (None, [])
        )
        return f"{type(node).__name__}({','.join(fields)})"

    def _value_text(self, value: object, module: Module) -> str:
        if isinstance(value, list):
            return f"[{','.join(self._value_text(v, module) for v in value if not _is_unseen(v))}]"
        return self._text(value, module) if isinstance(value, ast.AST) else repr(value)


def _is_followed(module: str) -> bool:
    top, _, rest = module.partition(".")
    return top == "tests" or rest.partition(".")[0] in FOLLOWED


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield a tree's nodes but those that change no number."""
    yield tree
    for name, value in ast.iter_fields(tree):
        for child in value if isinstance(value, list) else [value]:
            if name not in UNSEEN and isinstance(child, ast.AST) and not _is_unseen(child):
                yield from _nodes(child)


def _is_unseen(node: object) -> bool:
    """Return whether a node changes no number: imports, texts that stand alone, types, tiers."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Pass):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return isinstance(node.value.value, str)
    if isinstance(node, ast.Attribute) and node.attr == "slow":
        return ast.unparse(node) == "pytest.mark.slow"
    return isinstance(node, ast.If) and ast.unparse(node.test) in TYPES_ONLY


def _constant(node: ast.expr, module: Module) -> ast.expr | None:
    """Return what a constant of the file was given, any other expression as it is."""
    if not isinstance(node, ast.Name):
        return node
    given = [getattr(s, "value", None) for s in module.defined.get(node.id, [])]
    return given[0] if given else None


def _defines(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement of a file defines."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        for node in (n for target in targets for n in ast.walk(target)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


def _constant_text(value: object) -> str:
    """Return a constant with its type; a dotted path to own code without the path."""
    text = DOTTED.sub("", value) if isinstance(value, str) else value
    return f"{type(value).__name__}:{text!r}"
