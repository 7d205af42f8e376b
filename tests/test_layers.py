"""Imports go inwards only: the instrument, the ground, the families, the doors.

A method imports no other method: it takes what is its own, what its chapter and its family share,
and what lies further in.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from actkit.catalog import FAMILIES, methods
from actkit.core.folder import module_name

SOURCE = Path(__file__).parents[1] / "src"
INSTRUMENT = {"core", "model", "opening", "export", "store"}
GROUND = {"data", "worlds", "maths", "anatomy", "show"}
WITHIN: dict[str, set[str]] = {
    "core": set(),
    "store": {"core"},
    "model": {"core"},
    "opening": {"core", "model"},
    "export": {"core", "model", "opening"},
    "data": {"core"},
    "maths": {"core"},
    "anatomy": {"core", "model", "maths"},
    "show": {"core"},
    "worlds": {"core", "model", "maths"},
    "catalog": {"core"},
    "protocol": {"core", "model"},
    "family": INSTRUMENT | GROUND | {"catalog", "protocol"},
    "papers": {"core", "catalog", "opening"},
    "digests": {"core", "catalog"},
    "evidence": {"core", "catalog", "papers", "digests"},
    "comparison": INSTRUMENT | GROUND | {"catalog", "protocol", "family"},
    "scanning": INSTRUMENT | GROUND | {"catalog", "family", "comparison", "papers"},
    "cli": INSTRUMENT | {"data", "show", "catalog", "papers", "comparison", "scanning", "root"},
    "root": INSTRUMENT | GROUND | {"catalog", "family", "papers", "comparison", "scanning"},
}
"""What each room may import besides itself."""
EXCEPTIONS = {("actkit.model", "store"): "Model.harvest is where a store begins."}
"""Imports outwards, inside a function or for types only, each with its reason."""


class Import(NamedTuple):
    importer: str
    imported: str
    lazy: bool
    """Inside a function, or under TYPE_CHECKING."""


def layer(module: str) -> str:
    parts = module.split(".")
    if len(parts) == 1:
        return "root"
    return "family" if parts[1] in FAMILIES else parts[1]


def modules(source: Path) -> dict[str, Path]:
    found = {}
    for path in sorted(source.rglob("*.py")):
        found[module_name(path.relative_to(source))] = path
    return found


def imports(source: Path) -> Iterator[Import]:
    known = modules(source)
    for name, path in known.items():
        yield from walk(ast.parse(path.read_text()), name, known, lazy=False)


def walk(node: ast.AST, name: str, known: dict[str, Path], lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inner = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        inner = inner or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        for target in targets(child, known):
            yield Import(name, target, lazy)
        yield from walk(child, name, known, inner)


def targets(node: ast.AST, known: dict[str, Path]) -> list[str]:
    if isinstance(node, ast.Import):
        named = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        package = node.module or ""
        inside = [f"{package}.{alias.name}" for alias in node.names]
        named = [target if target in known else package for target in inside]
    else:
        return []
    return [target for target in named if target.partition(".")[0] == "actkit"]


def wrong(found: Import) -> str | None:
    """Return what is wrong with an import, None if it is as it should be."""
    own, other = layer(found.importer), layer(found.imported)
    if own == other == "family":
        return _wrong_in_families(found)
    if own == other or other in WITHIN[own]:
        return None
    if found.lazy and (found.importer, other) in EXCEPTIONS:
        return None
    return f"{found.importer} must not import {found.imported}"


def _wrong_in_families(found: Import) -> str | None:
    importer, imported = found.importer.split("."), found.imported.split(".")
    if importer[1] != imported[1]:
        return f"{found.importer} must not import {found.imported} of another family"
    own, chapter, method = imported[1:2], imported[1:3], imported[1:4]
    if len(imported) < 4 or importer[1:4] == method:
        return None  # what the family shares, or a method's own
    if not method[-1].startswith("_"):
        return f"{found.importer} must not import the method {found.imported}"
    doors = importer[1:] == own  # the family's `__init__` shows what its chapters share
    if importer[1:3] != chapter and not doors:
        return f"{found.importer} must not import {found.imported} of another chapter"
    return None


def test_imports_go_one_way() -> None:
    found = list(imports(SOURCE))
    assert len(found) > 50
    assert [text for text in map(wrong, found) if text] == []


def test_every_exception_is_in_use() -> None:
    upwards = {(i.importer, layer(i.imported)) for i in imports(SOURCE) if i.lazy}
    assert upwards >= set(EXCEPTIONS)


def test_no_two_files_import_each_other() -> None:
    """Imports inside functions and for types alone count, too."""
    graph: dict[str, set[str]] = {}
    for found in imports(SOURCE):
        if found.importer != found.imported:
            graph.setdefault(found.importer, set()).add(found.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_private_file_of_a_family_has_two_users() -> None:
    """Or it is the second half of a folder, or the family's `__init__` shows it to users."""
    users: dict[str, set[str]] = {}
    for found in imports(SOURCE):
        users.setdefault(found.imported, set()).add(found.importer)
    lonely = []
    for name in modules(SOURCE):
        package, _, file = name.rpartition(".")
        private = layer(name) == "family" and file.startswith("_") and file != "_base"
        known = users.get(name, set()) - {name}
        if private and len(known) < 2 and known != {package}:
            lonely.append(f"{name} <- {', '.join(known) or 'nobody'}")
    assert lonely == []


def test_no_two_public_classes_share_a_name() -> None:
    homes: dict[str, list[str]] = {}
    for name, path in modules(SOURCE).items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(name)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def test_no_two_files_share_a_name() -> None:
    """But for what each family or folder has one of; questions are named as their readings are."""
    often = {"_base", "protocol", "_shared", "tasks"}
    homes: dict[str, list[str]] = {}
    for name, path in modules(SOURCE).items():
        apart = (".architectures.", ".tasks.", ".questions.", "actkit.cli.")
        if path.stem != "__init__" and not any(part in name for part in apart):
            homes.setdefault(name.rpartition(".")[2], []).append(name)
    twice = {file: where for file, where in homes.items() if len(where) > 1 and file not in often}
    assert twice == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_lists_no_methods(family: str) -> None:
    """A new method adds files and edits none, so `__init__` names private files alone."""
    tree = ast.parse((SOURCE / "actkit" / family / "__init__.py").read_text())
    known = {name for entry in methods(family) for name in (entry.name, entry.object)}
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    files = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    assert not known & texts
    assert not {f"actkit.{family}.{name}" for name in known} & files


PLANTED = {
    "core above itself": ("core/sites/site.py", "from actkit.data import text"),
    "core above itself, in a function": ("core/run/hooks.py", "def f():\n    import actkit.store"),
    "core and the facade": ("core/run/hooks.py", "from actkit.model import Model"),
    "core above itself, at the excepted place": ("model.py", "import actkit.store"),
    "core and the catalog": ("core/sites/site.py", "from actkit.catalog import method"),
    "core and the whole": ("core/sites/site.py", "import actkit"),
    "core and the mathematics of papers": ("core/sites/site.py", "from actkit import maths"),
    "data and store": ("data/load.py", "from actkit.store import Store"),
    "store and data": ("store/write.py", "from actkit import data"),
    "ground and a family": ("worlds/trees.py", "from actkit.read._sums import added"),
    "pictures and what they show": ("show/graph.py", "from actkit.read._sums import added"),
    "catalog and a method": ("catalog.py", "from actkit.read.streaming.moments import Moments"),
    "a method and another": (
        "read/streaming/sinks.py",
        "from actkit.read.streaming.moments import Moments",
    ),
    "a method and another, by package": (
        "read/streaming/sinks.py",
        "from actkit.read.streaming import moments",
    ),
    "a method and another chapter's": (
        "read/spectra/rankme.py",
        "from actkit.read.streaming._shared import x",
    ),
    "a method and the inside of another": (
        "read/streaming/sinks.py",
        "from actkit.read.streaming.voids._half import x",
    ),
    "a method and another family": (
        "read/streaming/sinks.py",
        "from actkit.steer._states import x",
    ),
    "types of another method": (
        "read/streaming/sinks.py",
        "if TYPE_CHECKING:\n    from actkit.read.streaming.moments import Moments",
    ),
    "a method and a door": ("read/streaming/sinks.py", "from actkit.scanning.scan import scan"),
    "scan and the command line": ("scanning/scan.py", "from actkit.cli import main"),
    "command line and a method": ("cli.py", "from actkit.read.streaming.moments import Moments"),
}
ALLOWED = {
    "lazily, at the excepted place": ("model.py", "def f():\n    import actkit.store"),
    "what the family shares": ("read/streaming/sinks.py", "from actkit.read._sums import added"),
    "what the chapter shares": (
        "read/streaming/sinks.py",
        "from actkit.read.streaming._shared import x",
    ),
    "own second half": (
        "read/streaming/voids/__init__.py",
        "from actkit.read.streaming.voids._half import x",
    ),
    "decorator": ("read/streaming/sinks.py", "from actkit.catalog import method"),
    "the ground": ("read/streaming/sinks.py", "from actkit.maths import rows"),
    "other packages": ("core/sites/site.py", "import torch\nfrom pathlib import Path"),
    "scan and a reading": (
        "scanning/scan.py",
        "from actkit.read.streaming.moments import Moments",
    ),
}
FILES = (
    "read/_sums.py",
    "read/streaming/moments.py",
    "read/streaming/_shared.py",
    "read/streaming/voids/__init__.py",
    "read/streaming/voids/_half.py",
    "steer/_states.py",
    "maths/__init__.py",
    "data/__init__.py",
    "store/__init__.py",
)


def plant(root: Path, file: str, text: str) -> list[str]:
    for name in (file, "read/streaming/moments.py", "data/__init__.py", "store/__init__.py"):
        path = root / "actkit" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (root / "actkit" / file).write_text(text)
    return [text for text in map(wrong, imports(root)) if text]


@pytest.mark.parametrize("name", PLANTED)
def test_a_wrong_import_is_found(tmp_path: Path, name: str) -> None:
    assert len(plant(tmp_path, *PLANTED[name])) == 1


@pytest.mark.parametrize("name", ALLOWED)
def test_a_right_import_passes(tmp_path: Path, name: str) -> None:
    assert plant(tmp_path, *ALLOWED[name]) == []


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import actkit", {"torch", "transformers", "numpy"}),
        ("import actkit.cli", {"torch", "transformers", "numpy"}),
        ("import actkit.papers", {"torch", "transformers", "numpy"}),
        ("import actkit.data", {"torch", "transformers", "datasets", "pyarrow"}),
        ("import actkit; actkit.Model, actkit.add, actkit.Store", {"transformers", "datasets"}),
    ],
)
def test_import_stays_light(statement: str, absent: set[str]) -> None:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert "actkit" in done.stdout.split()
    assert absent & set(done.stdout.split()) == set()
