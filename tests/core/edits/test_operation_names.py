"""Operations are saved under names of their own, and files of earlier versions still load."""

import json
import subprocess
import sys
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import actkit as ak
from actkit.core.edits.files import KEY
from actkit.core.edits.operation import REGISTERED, AffineForm, Operation
from actkit.core.edits.operation_names import operation_named
from actkit.core.edits.operations import Add
from actkit.core.errors import EditError
from actkit.core.folder import module_name
from tests.core.edits.edits_before import FOLDER, every_kind
from tests.core.edits.test_edit_file import assert_same

KINDS = every_kind()
each = pytest.mark.parametrize("name", KINDS)


def saved_operation(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        (edit,) = json.loads(file.metadata()[KEY])["edits"]
    said: str = edit["operation"]
    return said


def every_class() -> list[type[Operation]]:
    """Return the package's classes of operations, private ones too, that can be made."""
    root = Path(ak.__path__[0])
    for path in sorted(root.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        # other files may need what is not installed, as the engine on Ray does
        if "Operation" in text or "Controller" in text:
            import_module(module_name(path.relative_to(root.parent)))
    found, left = [], [Operation]
    while left:
        left += (new := left.pop().__subclasses__())
        found += new
    ours = [c for c in found if c.__module__.startswith("actkit.")]
    return [c for c in ours if not getattr(c, "__abstractmethods__", None)]


@each
def test_a_file_that_was_written_before_still_loads(name: str) -> None:
    assert_same([KINDS[name]], ak.load_edits(FOLDER / f"{name}.safetensors"))


@each
def test_a_new_file_says_the_identifier_and_no_path_of_a_module(name: str, tmp_path: Path) -> None:
    ak.save_edits(tmp_path / "e", [KINDS[name]])
    assert saved_operation(tmp_path / "e") == KINDS[name].operation.identifier
    assert b"actkit." not in (tmp_path / "e").read_bytes()
    assert_same([KINDS[name]], ak.load_edits(tmp_path / "e"))


@each
def test_what_an_older_file_says_is_what_the_class_says(name: str) -> None:
    own = type(KINDS[name].operation)
    assert saved_operation(FOLDER / f"{name}.safetensors") in (own.identifier, *own.formerly)


def test_every_operation_that_is_data_has_a_name() -> None:
    classes = every_class()
    code = [c for c in classes if any(holds_code(f.type) for f in fields(c))]
    assert "Apply" in [c.__name__ for c in code] and len(code) < len(classes) / 4
    assert not [c for c in code if c.identifier]
    assert [c for c in classes if c not in code and not c.identifier] == []
    named = [c.identifier for c in classes if c.identifier]
    assert len(set(named)) == len(named) >= len(KINDS)
    assert not [name for name in named if ":" in name or name.startswith("actkit")]


def test_every_name_of_before_has_a_file_of_before() -> None:
    held = {type(edit.operation) for edit in KINDS.values()}
    assert {c for c in every_class() if c.formerly} <= held


def holds_code(kind: Any) -> bool:
    return "Callable" in str(kind) or "dict" in str(kind)


def test_a_fresh_process_finds_the_classes_that_nobody_has_imported(tmp_path: Path) -> None:
    for name, edit in KINDS.items():
        ak.save_edits(tmp_path / name, [edit])
    code = f"""
import sys
from pathlib import Path
from actkit.core.edits.files import load_edits
assert not any(name.startswith("actkit.steer") for name in sys.modules)
for folder in ({str(FOLDER)!r}, {str(tmp_path)!r}):
    for path in sorted(Path(folder).iterdir()):
        (edit,) = load_edits(path)
        print(path.name.removesuffix(".safetensors"), type(edit.operation).identifier)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    expected = [f"{name} {KINDS[name].operation.identifier}" for name in sorted(KINDS)]
    assert sorted(done.splitlines()) == sorted(expected * 2)


@pytest.mark.parametrize("name", ["actkit.cli:main", "actkit.__main__:x", "utf-8", "os:system", ""])
def test_nothing_else_of_the_package_is_imported_for_a_name(name: str) -> None:
    before = set(sys.modules)
    with pytest.raises(ValueError, match="unknown operation"):
        operation_named(name)
    new = {module for module in set(sys.modules) - before if not module.startswith("importlib.")}
    assert new == set()  # how Python finds the package's files is its own affair


def test_two_classes_of_one_name_are_refused_and_the_first_stays() -> None:
    with pytest.raises(
        EditError, match=r"'Add' of .*Other is that of actkit\.core\.edits\.operations:Add"
    ):

        class Other(Operation):
            identifier = "Add"

    with pytest.raises(EditError, match=r"'actkit\.steer\.gact:Choose' of .*Older is that of"):

        class Older(Operation):
            identifier = "test_operation_names.older"
            formerly = ("actkit.steer.gact:Choose",)

    assert operation_named("Add") is Add
    assert "test_operation_names.older" not in REGISTERED


def doubled() -> type[Operation]:
    @dataclass(frozen=True, eq=False)
    class Doubled(Operation):
        identifier: ClassVar[str] = "test_operation_names.doubled"

        def __call__(self, x: Tensor) -> Tensor:
            return 2 * x

    return Doubled


def test_a_class_that_is_made_again_takes_its_own_place(tmp_path: Path) -> None:
    doubled()
    again = doubled()
    ak.save_edits(tmp_path / "e", [ak.Edit("s", again())])
    (edit,) = ak.load_edits(tmp_path / "e")
    assert type(edit.operation) is again


@dataclass(frozen=True, eq=False)
class AddTwice(Add):
    """Does something else than its parent, and is not saved as it."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return x + 2 scale vector."""
        return super().__call__(super().__call__(x))


def test_a_class_does_not_inherit_a_name(tmp_path: Path) -> None:
    assert AddTwice.identifier == "" and AddTwice.formerly == ()
    edits = [ak.Edit("s", AddTwice(torch.ones(3), 0.5))]
    ak.save_edits(tmp_path / "e", edits)
    assert saved_operation(tmp_path / "e") == f"{__name__}:AddTwice"
    assert_same(edits, ak.load_edits(tmp_path / "e"))


def test_a_class_without_a_name_that_could_be_found_again_is_told_to_give_one(
    tmp_path: Path,
) -> None:
    @dataclass(frozen=True, eq=False)
    class Halved(Operation):
        def __call__(self, x: Tensor) -> Tensor:
            return x / 2

    with pytest.raises(EditError, match="halved at s has none: give Halved an `identifier`"):
        ak.save_edits(tmp_path / "e", [ak.Edit("s", Halved())])
    assert not list(tmp_path.iterdir())


def test_a_field_that_is_no_data_is_not_left_out_in_silence(tmp_path: Path) -> None:
    @dataclass(frozen=True, eq=False)
    class ByTable(Operation):
        identifier: ClassVar[str] = "test_operation_names.by_table"
        table: dict[str, float]

        def __call__(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(EditError, match="saved as data, and bytable at s holds a dict"):
        ak.save_edits(tmp_path / "e", [ak.Edit("s", ByTable({"a": 1.0}))])


def test_a_map_must_say_its_transpose() -> None:
    with pytest.raises(EditError, match="needs `transposed` where linear is 'any' and only there"):
        AffineForm("any")
    with pytest.raises(EditError, match="only there, got 'identity'"):
        AffineForm("identity", transposed=Add(torch.ones(2)))
