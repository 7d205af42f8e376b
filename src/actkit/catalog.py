"""The catalog: every method, found by reading files, imported only when it is asked for.

A method is a file `actkit/<family>/<chapter>/<name>.py`, or a folder of that name, with one class
or function marked `@method`; what starts with `_` is no method. Name, family and chapter come from
the path, the summary from the file's first line, the source from the mark, the signature from the
code: nothing is written twice, and adding a method edits no list. Its interface, which says how
it is called and which tests it must pass, is for a class what it derives from, for a function
what its mark names; interfaces are in private files of the family.
"""

import ast
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from actkit.core.errors import MethodError

T = TypeVar("T", bound=Callable[..., Any])
Definition = ast.ClassDef | ast.FunctionDef

ROOT = Path(__file__).parent
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
FAMILIES = {
    "read": "measure and describe activations",
    "find": "find the features, concepts and directions a network uses; explain its decisions",
    "trace": "find which heads, neurons and circuits cause an answer",
    "steer": "change what a model says or does by editing its activations",
    "guard": "detect strange inputs, verify a computation, certify bounds, audit safety",
    "shrink": "make inference cheaper, smaller and faster",
    "tune": "train and fine-tune with less memory, better objectives and initialisation",
    "nn": "activation functions and layers",
    "brain": "compare networks with the brain; decode and model recordings",
}
"""The nine families and what each is for."""
NO_CHAPTERS = {"tasks"}
"""Folders of a family that hold no methods."""


class Method(Protocol):
    """A method as `get` returns it: a class or a function, called with its settings or its data.

    Attributes:
        __name__: Of the class or function.
        __method__: The paper and the place in it.
    """

    __name__: str
    __method__: str

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """Return an object of the class, or what the function returns."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the catalog knows of a method before it is imported.

    Attributes:
        name: The name of its file or folder.
        family: The family's folder.
        chapter: The folder in it.
        interface: The class of the family that says how it is called; empty where there is none.
        summary: The first line of the file's docstring.
        source: The paper and the place in it, as marked.
        arxiv: The arXiv ids in `source`.
        object: The name of the marked class or function.
        signature: How it is called, for example `Probe(ridge: float = 0.1)`.
        required: Parameters that have no default.
        path: The file.
    """

    name: str
    family: str
    chapter: str
    interface: str
    summary: str
    source: str
    arxiv: tuple[str, ...]
    object: str
    signature: str
    required: tuple[str, ...]
    path: Path

    @property
    def module(self) -> str:
        """Return the name of the module that holds the object."""
        return f"actkit.{self.family}.{self.chapter}.{self.name}"

    def load(self) -> Any:
        """Import the method's file and return its class or function."""
        return getattr(importlib.import_module(self.module), self.object)


def method(*, source: str, interface: type | None = None) -> Callable[[T], T]:
    """Mark the one public object of a method's file.

    Args:
        source: The paper and the place in it: "Rimsky et al. 2024, arXiv:2312.06681, eq. 1".
        interface: What says how a function is called and what it returns; a class derives from
            its own.
    """

    def mark(obj: T) -> T:
        obj.__method__ = source  # type: ignore[attr-defined]
        obj.__interface__ = interface  # type: ignore[attr-defined]
        return obj

    return mark


def methods(family: str | None = None) -> list[Entry]:
    """Return the methods of one family, or all, in the order of families and names.

    Raises:
        MethodError: There is no such family, or a file declares no method.
    """
    if family is not None and family not in FAMILIES:
        raise MethodError(f"no family {family!r}; families: {', '.join(FAMILIES)}")
    return [e for e in _entries().values() if family in (None, e.family)]


def entry(name: str) -> Entry:
    """Return what is known of a method, without importing it.

    Args:
        name: As `ak.methods()` lists it, with its family in front if you like ("steer.caa"), or
            the name of its class ("CAA"); case and hyphens do not count.

    Raises:
        MethodError: There is no such method; the message lists the nearest names.
    """
    if not isinstance(name, str):
        raise MethodError(f"a method is asked for by its name, got {type(name).__name__}")
    found = _entries()
    named = found.get(name) or _called(name, found)
    if named is None:
        raise MethodError(f"no method {name!r} among {len(found)}; {_near(name, found)}")
    return named


def get(name: str) -> Method:
    """Import a method and return its class or function.

    Args:
        name: As in `entry`: "caa", "steer.caa", or "CAA".

    Raises:
        MethodError: There is no such method; the message lists the nearest names.

    Example:
        >>> get("CAA") is get("steer.caa") is get("caa")
        True
    """
    made: Method = entry(name).load()
    return made


def _called(name: str, found: Mapping[str, Entry]) -> Entry | None:
    """Return the one method that is meant by another way to write its name."""
    family, dot, bare = name.rpartition(".")
    own = [e for e in found.values() if not dot or e.family == family.lower()]
    met = [e for e in own if _plain(bare) in (_plain(e.name), _plain(e.object))]
    return met[0] if len(met) == 1 else None


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _near(name: str, found: Mapping[str, Entry]) -> str:
    """Return what may have been meant, in words."""
    family, dot, bare = name.rpartition(".")
    asked = _plain(bare)
    if dot and family.lower() not in FAMILIES:
        return f"families: {', '.join(FAMILIES)}"
    names = {_plain(e.name): e for e in found.values()}
    classes = {_plain(e.object): e for e in found.values()}
    if dot and (other := names.get(asked) or classes.get(asked)):
        return f"{other.name} is of the family {other.family}"
    close = [names[n].name for n in get_close_matches(asked, names)]
    close = close or [classes[n].name for n in get_close_matches(asked, classes)]
    return f"nearest: {', '.join(dict.fromkeys(close)) or 'none is close'}"


@cache
def _entries() -> dict[str, Entry]:
    return find_methods(ROOT)


def find_methods(root: Path) -> dict[str, Entry]:
    """Read the methods of the families under `root`, by name.

    Raises:
        MethodError: A file is no method, or two share a name.
    """
    found: dict[str, Entry] = {}
    for family in FAMILIES:
        own = [_read(path, family) for path in _files(root / family)]
        for new in sorted(own, key=lambda entry: entry.name):
            if (old := found.setdefault(new.name, new)) is not new:
                raise MethodError(f"a method's name must be unique, got {old.path} and {new.path}")
    return found


def _files(family: Path) -> list[Path]:
    """Return the files of a family's methods, chapter by chapter; of a folder its `__init__`.

    Raises:
        MethodError: A method lies beside the chapters, where nobody would find it.
    """
    beside = [path for path in sorted(family.glob("[!_]*.py")) if "@method(" in path.read_text()]
    if beside:
        raise MethodError(f"a method must be in a chapter of {family.name}, got {beside[0]}")
    files = family.glob("[!_]*/[!_]*.py")
    folders = family.glob("[!_]*/[!_]*/__init__.py")
    found = (
        path for path in [*files, *folders] if path.relative_to(family).parts[0] not in NO_CHAPTERS
    )
    return sorted(found, key=lambda path: path.relative_to(family).parts)


def _read(path: Path, family: str) -> Entry:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise MethodError(f"a method must be valid Python, {path}: {error}") from error
    marked = [
        (node, mark)
        for node in tree.body
        if isinstance(node, Definition)
        for mark in node.decorator_list
        if _is_mark(mark)
    ]
    if len(marked) != 1:
        raise MethodError(
            f"a method's file must mark one object with @method, {path} marks {len(marked)}"
        )
    node, mark = marked[0]
    source = _source(mark, path)
    summary = (ast.get_docstring(tree) or "").partition("\n")[0]
    if not summary:
        raise MethodError(f"a method's file must start with a docstring, {path} has none")
    of_method = path.parent if path.stem == "__init__" else path.with_suffix("")
    return Entry(
        name=of_method.name,
        family=family,
        chapter=of_method.parent.name,
        interface=_interface(node, mark, of_method.parents[1]),
        summary=summary,
        source=source,
        arxiv=tuple(ARXIV.findall(source)),
        object=node.name,
        signature=node.name + _signature(node),
        required=_required(node),
        path=path,
    )


def _interface(node: Definition, mark: ast.expr, family: Path) -> str:
    """Return the name of the interface that a method stands under, empty if it names none."""
    if isinstance(node, ast.ClassDef):
        named = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
    else:
        given = mark.keywords if isinstance(mark, ast.Call) else []
        named = [ast.unparse(k.value).rpartition(".")[2] for k in given if k.arg == "interface"]
    return next((name for name in named if name in interfaces(family)), "")


@cache
def interfaces(family: Path) -> frozenset[str]:
    """Return the names of the public classes in a family's private files."""
    return frozenset(
        node.name
        for path in family.glob("_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )


def _is_mark(node: ast.expr) -> bool:
    """Return whether a decorator is `@method` or `@catalog.method`, called or not."""
    call = node.func if isinstance(node, ast.Call) else node
    return getattr(call, "id", getattr(call, "attr", None)) == "method"


def _source(mark: ast.expr, path: Path) -> str:
    given = mark.keywords if isinstance(mark, ast.Call) else []
    texts = [
        k.value.value for k in given if k.arg == "source" and isinstance(k.value, ast.Constant)
    ]
    if len(texts) != 1 or not isinstance(texts[0], str) or not texts[0].strip():
        raise MethodError(f"@method must say source='...' as plain text, {path} does not")
    return texts[0]


def _signature(node: Definition) -> str:
    """Return the parameters: a function's, `__init__`'s, or a dataclass's fields."""
    arguments = _arguments(node)
    if arguments is None:
        return f"({', '.join(_fields(node))})"
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return f"({ast.unparse(arguments)}){returns}"
    return f"({ast.unparse(arguments).removeprefix('self').removeprefix(', ')})"


def _required(node: Definition) -> tuple[str, ...]:
    """Return the names of the parameters that have no default."""
    args = _arguments(node)
    if args is None:
        fields = (field for field in _fields(node) if field != "*" and " = " not in field)
        return tuple(field.partition(":")[0] for field in fields)
    given = [*args.posonlyargs, *args.args]
    without = given[: len(given) - len(args.defaults)]
    named = zip(args.kwonlyargs, args.kw_defaults, strict=True)
    names = (*(a.arg for a in without), *(a.arg for a, default in named if default is None))
    return tuple(name for name in names if name != "self")


def _arguments(node: Definition) -> ast.arguments | None:
    """Return the arguments of a function, or of a class's `__init__`; None of a dataclass."""
    if isinstance(node, ast.FunctionDef):
        return node.args
    own = (item for item in node.body if isinstance(item, ast.FunctionDef))
    return next((item.args for item in own if item.name == "__init__"), None)


def _fields(node: Definition) -> Iterator[str]:
    """Yield the fields of a dataclass that its caller gives."""
    for item in node.body:
        if not isinstance(item, ast.AnnAssign):
            continue
        name, kind = ast.unparse(item.target), ast.unparse(item.annotation)
        value = ast.unparse(item.value) if item.value else ""
        if "KW_ONLY" in kind:
            yield "*"
        elif not (name.startswith("_") or "ClassVar" in kind or "init=False" in value):
            default = _default(value)
            yield f"{name}: {kind} = {default}" if default else f"{name}: {kind}"


def _default(value: str) -> str:
    """Return a field's default as a signature shows it, empty where there is none."""
    if not value.startswith("field("):
        return value
    return "..." if "default" in value else ""
