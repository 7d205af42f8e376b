"""Folders whose files are found by reading the folder, so that adding one edits no list."""

from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import isfunction
from pathlib import Path
from types import ModuleType
from typing import Any


def module_name(path: Path) -> str:
    """Return the dotted name of a file's module, the path being from where its package lies.

    Example:
        >>> module_name(Path("actkit/core/folder.py")), module_name(Path("actkit/__init__.py"))
        ('actkit.core.folder', 'actkit')
    """
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files_of(package: str, folder: str | Path) -> Iterator[ModuleType]:
    """Import the public files of a package's folder and yield them in order.

    A file may say where it comes in lists, `PLACE = 3`; those that do not come last, by name.

    Args:
        package: Its full name, `__name__` in its `__init__`.
        folder: Where it lies, `__file__` in its `__init__` or the folder itself.

    Example:
        >>> import actkit.core.sites.architectures as here
        >>> [file.__name__.rpartition(".")[2] for file in files_of(here.__name__, here.__file__)][0]
        'albert'
    """
    path = Path(folder)
    home = path if path.is_dir() else path.parent
    files = [import_module(f"{package}.{f.stem}") for f in sorted(home.glob("[!_]*.py"))]
    yield from sorted(files, key=lambda file: getattr(file, "PLACE", len(files)))


def functions_of(package: str, folder: str | Path, returns: str) -> dict[str, Callable[..., Any]]:
    """Return the public functions of a folder's files that say that they return something.

    Args:
        package: As in `files_of`.
        folder: As in `files_of`.
        returns: The name of what they return, as annotated.
    """
    found: dict[str, Callable[..., Any]] = {}
    for file in files_of(package, folder):
        for name, made in vars(file).items():
            own = isfunction(made) and made.__module__ == file.__name__
            if own and not name.startswith("_") and _returned(made) == returns:
                found[name] = made
    return found


def _returned(made: Callable[..., Any]) -> str:
    said = made.__annotations__.get("return")
    return said if isinstance(said, str) else getattr(said, "__name__", "")
