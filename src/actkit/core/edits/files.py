"""Edit files: edits as one safetensors file, whose header says in JSON what they are.

The metadata's entry `actkit_edits` holds the format's version, where the edits come from, and for
each edit its site, its operation by identifier, numbers, place and the names of its tensors. The
file is sealed by the SHA-256 of all of it.
"""

import json
from collections.abc import Sequence
from dataclasses import Field, fields
from importlib.metadata import version
from math import isfinite
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch import Tensor

from actkit.core.edits.edit import Edit, as_edits
from actkit.core.edits.operation import Operation
from actkit.core.edits.operation_names import operation_named
from actkit.core.edits.where import Where, from_description
from actkit.core.errors import DataError, EditError
from actkit.core.provenance import stamp
from actkit.core.sealed_file import read_sealed, write_sealed

if TYPE_CHECKING:
    from actkit.core.run.runner import Runner

FORMAT = 1
KEY = "actkit_edits"


def save_edits(
    path: str | PathLike[str], edits: Sequence[Edit], model: "Runner | None" = None, **about: Any
) -> None:
    """Write edits to one file; it appears whole or not at all.

    Args:
        path: The file; an old one is replaced.
        edits: Any but `apply`, whose function is code and not data.
        model: The network that they were fitted on; its name, weight hash and width are kept.
        about: Anything else worth keeping: `method="caa"`, `seed=0`, the data's hash.

    Raises:
        EditError: An edit cannot be saved.
        DataError: The file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    header = {
        "format": FORMAT,
        "sealed": True,
        **_origin(model, about),
        "edits": [_packed(edit, str(i), tensors) for i, edit in enumerate(as_edits(edits))],
    }
    write_sealed(path, tensors, {KEY: json.dumps(header)}, "an edit file")


def load_edits(path: str | PathLike[str], model: "Runner | None" = None) -> list[Edit]:
    """Read the edits of a file, bit by bit as they were saved.

    Args:
        path: The file.
        model: The network that they are for; without it nobody checks whether they fit.

    Raises:
        DataError: The file is missing, damaged in any bit, newer than this actkit, or holds no
            edits.
        EditError: They were fitted on another network than `model`.
    """
    header, tensors, whole = _read(path)
    if model is not None:
        _check_origin(header, model, path)
    try:
        edits = [_unpacked(edit, tensors) for edit in header["edits"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"an edit file must hold whole edits: {path}: {error!r}") from error
    if not whole:
        raise DataError(f"an edit file must be what was written: {path} has lost its SHA-256")
    return edits


def edit_facts(path: str | PathLike[str]) -> dict[str, Any]:
    """Return what a file says of its edits: versions, network, settings, and each in a line.

    Raises:
        DataError: As in `load_edits`.
    """
    header, _, _ = _read(path)
    edits = [f"{e.operation.name} at {e.site} where {e.where}" for e in load_edits(path)]
    return {**header, "edits": edits}


def _read(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor], bool]:
    """Return a file's header and tensors, and whether it has the seal that its header tells of."""
    tensors, metadata, sealed = read_sealed(path, "an edit file")
    header = _header(metadata, path)
    # files of earlier versions have no seal; one that says it has must not have lost it
    return header, tensors, sealed or not header.get("sealed")


def _check_origin(header: dict[str, Any], model: "Runner", path: Any) -> None:
    """Refuse a network that is not the one that the edits were fitted on."""
    own = _origin(model, {})
    for fact in ("width", "weights"):
        found = header.get(fact)
        if found is not None and own[fact] is not None and found != own[fact]:
            raise EditError(
                f"edits must be used on the network they were fitted on: {path} is of "
                f"{header.get('model')!r} with {fact} {found}, got {model.name!r} with "
                f"{own[fact]}; load them without a model to use them all the same"
            )


def _origin(model: "Runner | None", about: dict[str, Any]) -> dict[str, Any]:
    """Return where the edits come from."""
    if model is None:
        about = json.loads(json.dumps(about, default=str))
        return {"actkit": version("actkit"), "settings": about}
    width = next((s.stack.width for s in model.sites() if s.stack is not None), None)
    return {**stamp(model, **about), "width": width}


def _packed(edit: Edit, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return an edit's header, and put its tensors with the others."""
    operation, kind = edit.operation, _kind(edit)
    if edit.batch_rows is not None:
        raise EditError(f"an edit of a block of a batch cannot be saved, got {edit.batch_rows}")
    own = operation.tensors()
    places = {f.name: getattr(edit.where, f.name) for f in fields(Where)}
    where = {k: v for k, v in places.items() if isinstance(v, Tensor)}
    tensors |= {f"{name}.{k}": v for k, v in own.items()}
    tensors |= {f"{name}.where.{k}": v for k, v in where.items()}
    values = {f.name: getattr(operation, f.name) for f in fields(operation)}
    plain: dict[str, Any] = {
        k: v for k, v in values.items() if isinstance(v, bool | str | list | tuple)
    }
    # a field without an entry comes back as the class has it by default, which need not be None
    plain |= {f.name: None for f in fields(operation) if _is_none_against_default(operation, f)}
    return {
        "site": edit.site,
        "operation": kind,
        "numbers": {k: _number(v) for k, v in values.items() if _is_number(v)},
        "plain": plain,
        "tensors": {k: f"{name}.{k}" for k in own},
        "where": edit.where.described(),
        "where_tensors": {k: f"{name}.where.{k}" for k in where},
    }


def _kind(edit: Edit) -> str:
    """Return the name that a file knows the operation under."""
    operation = edit.operation
    for field in fields(operation):
        value = getattr(operation, field.name)
        # what is left out would be lost without a word, and the class made without it
        if not _is_data(value):
            what = "code" if callable(value) else f"a {type(value).__name__}"
            raise EditError(
                f"edits are saved as data, and {operation.name} at {edit.site} holds {what}: "
                "write it with the other operations, or save the function yourself"
            )
    if not (name := operation.saved_as()):
        raise EditError(
            f"an operation is saved under a name of its own, {operation.name} at {edit.site} has "
            f"none: give {type(operation).__name__} an `identifier`"
        )
    return name


def _is_data(value: Any) -> bool:
    """Say whether a file can hold the value of a field: a tensor, or what JSON knows."""
    if isinstance(value, list | tuple):
        return all(_is_data(item) and not isinstance(item, Tensor) for item in value)
    return value is None or isinstance(value, Tensor | int | float | str)


def _is_none_against_default(operation: Operation, field: Field[Any]) -> bool:
    """Say whether a field is None though it has another default."""
    return getattr(operation, field.name) is None and field.default is not None


def _unpacked(packed: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    kind = operation_named(packed["operation"])
    numbers = {k: v if isinstance(v, int) else float(v) for k, v in packed["numbers"].items()}
    own = {k: tensors[v] for k, v in packed["tensors"].items()}
    lost = {k: v.isnan() if k in kind.boundless else ~v.isfinite() for k, v in own.items()}
    if broken := [k for k, v in lost.items() if v.any()]:
        raise ValueError(f"{packed['site']} has NaN or infinite values in {', '.join(broken)}")
    plain = {k: _tuples(v) for k, v in packed.get("plain", {}).items()}
    where = {k: tensors[v] for k, v in packed["where_tensors"].items()}
    operation = kind(**numbers, **own, **plain)
    return Edit(packed["site"], operation, from_description(packed["where"], where))


def _header(metadata: dict[str, str], path: Any) -> dict[str, Any]:
    if KEY not in metadata:
        raise DataError(f"an edit file must be written by save_edits: {path} has no {KEY!r}")
    try:
        header: dict[str, Any] = json.loads(metadata[KEY])
        number, writer = int(header["format"]), header["actkit"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"an edit file's header must be whole: {path}: {error!r}") from error
    if number > FORMAT:
        raise DataError(
            f"this actkit {version('actkit')} reads edit files up to format {FORMAT}: {path} has "
            f"format {number}, written by actkit {writer}; update actkit"
        )
    return header


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tuples(value: Any) -> Any:
    """Return lists as tuples, since JSON knows no others."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _number(value: float) -> float | str:
    """Return a number for JSON, which knows no infinity."""
    return value if isfinite(value) else str(value)
