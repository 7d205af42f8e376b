"""Edit files: every bit comes back; what is no edit file is named and refused."""

import json
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import actkit as ak
from actkit.core.edits import files as edit_file
from actkit.core.edits.edit import Edit
from actkit.core.edits.where import Where
from actkit.core.errors import DataError, EditError
from actkit.core.provenance import weight_hash
from actkit.core.run.recording import Recording, Rows
from actkit.model import Model
from tests.core import tiny

D = 5
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float16]
REC = Recording({"s": tiny.uneven(2, 3, D)}, {}, Rows.of(torch.ones(2, 3).bool()))


def every_operation(dtype: torch.dtype) -> list[Edit]:
    """All operations that are data; some tensors are views, transposed or shared."""
    v, m = tiny.uneven(D, dtype=dtype), tiny.uneven(D, D, dtype=dtype)
    return [
        ak.add("s", v, 1 / 3),
        ak.add("s", v.expand(2, D), torch.tensor([0.1, -7.0], dtype=dtype)),
        ak.add("s", v, torch.tensor(2.5, dtype=dtype)),
        ak.set("s", m[:, 1]),
        ak.set("s", -0.0),
        ak.scale("s", 1e-17),
        ak.scale("s", m),
        ak.project_out("s", m[:2].float().to(dtype)),
        ak.clamp("s", float("-inf"), 0.1),
        ak.clamp("s", -1, float("inf"), v),
        ak.affine("s", m.T, v),
        ak.affine("s", m),
        ak.swap("s", REC),
    ]


WHERES = [
    Where(),
    Where(tokens="generated"),
    Where(tokens=-3),
    Where(tokens=[0, -1], rows=-1, heads=2, units=[4, 0], steps=3),
    Where(tokens=(1, 2), rows=(0,), heads=(1, -1)),
    Where(tokens=slice(-4, None, 2), rows=slice(None, 3), units=slice(1, -1), steps=slice(2, None)),
    Where(tokens=torch.tensor([[True, False, True]]), rows=torch.tensor([True, False])),
    Where(tokens=torch.tensor([2, -1]), units=torch.tensor([3]), steps=torch.tensor([1, 4])),
    Where(rows=np.array([1, 0]), units=range(3)),  # type: ignore[arg-type]
]


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def same(a: Any, b: Any) -> bool:
    """Compare bit by bit; several indices are a list in the file, whatever they were."""
    if isinstance(a, Tensor):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(bits(a), bits(b))
    if isinstance(a, np.ndarray | range | tuple | list):
        return list(a) == list(b)
    return type(a) is type(b) and repr(a) == repr(b)


def assert_same(edits: list[Edit], loaded: list[Edit]) -> None:
    assert len(edits) == len(loaded)
    for a, b in zip(edits, loaded, strict=True):
        assert a.site == b.site and type(a.operation) is type(b.operation)
        for f in fields(a.operation):
            assert same(getattr(a.operation, f.name), getattr(b.operation, f.name)), f.name
        for f in fields(Where):
            assert same(getattr(a.where, f.name), getattr(b.where, f.name)), f.name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_operation_comes_back_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    edits = every_operation(dtype)
    ak.save_edits(tmp_path / "e.safetensors", edits)
    assert_same(edits, ak.load_edits(tmp_path / "e.safetensors"))


def test_every_place_comes_back(tmp_path: Path) -> None:
    edits = [ak.add("s", tiny.uneven(D), where=w) for w in WHERES]
    ak.save_edits(str(tmp_path / "e"), edits)
    assert_same(edits, ak.load_edits(str(tmp_path / "e")))


def test_a_loaded_edit_does_the_same(tmp_path: Path) -> None:
    m = tiny.model()
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[:, -2:] = True
    edits = [
        ak.add("resid_post.0", tiny.uneven(48), where=Where(tokens=slice(1, None), rows=[0, 2])),
        ak.project_out("resid_*.1", tiny.uneven(2, 48)),
        ak.scale("attn_probs.1", 0.5, Where(heads=[1, 4])),
        ak.swap("z.2", m.run(tiny.PROMPTS[::-1], record="z.2")),
        ak.clamp("mlp_out.2", -1.0, 1.0, where=Where(tokens=mask)),
    ]
    ak.save_edits(tmp_path / "e", edits, m)
    want = m.run(tiny.PROMPTS, edits=edits, logits=True).logits
    got = m.run(tiny.PROMPTS, edits=ak.load_edits(tmp_path / "e"), logits=True).logits
    assert want is not None and got is not None and torch.equal(got, want)


def test_gradients_and_devices_are_not_kept(tmp_path: Path) -> None:
    v = tiny.uneven(D).requires_grad_()
    ak.save_edits(tmp_path / "e", [ak.add("s", v)])
    (edit,) = ak.load_edits(tmp_path / "e")
    assert not any(t.requires_grad for t in edit.operation.tensors().values())
    assert v.requires_grad


def test_no_edits_are_a_file_too(tmp_path: Path) -> None:
    ak.save_edits(tmp_path / "e", [])
    assert ak.load_edits(tmp_path / "e") == []


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()[edit_file.KEY])
    return found


def test_the_header_says_where_the_edits_come_from(tmp_path: Path) -> None:
    m = tiny.model()
    ak.save_edits(tmp_path / "e", [ak.add("resid_post.1", torch.ones(48))], m, seed=7, method="caa")
    found = header(tmp_path / "e")
    assert found["format"] == 1 and found["actkit"] == ak.__version__
    assert found["model"] == "tiny-llama" and found["width"] == 48 and found["seed"] == 7
    assert found["weights"] == weight_hash(m.module)
    assert found["settings"] == {"method": "caa"}
    (edit,) = found["edits"]
    assert edit["site"] == "resid_post.1" and edit["operation"] == "Add"
    assert edit["numbers"] == {"scale": 1.0} and edit["tensors"] == {"vector": "0.vector"}
    ak.save_edits(tmp_path / "e", [], Model(tiny.Cnn()))
    assert header(tmp_path / "e")["width"] is None
    ak.save_edits(tmp_path / "e", [], folder=tmp_path)
    assert header(tmp_path / "e")["settings"] == {"folder": str(tmp_path)}


def test_a_network_of_another_width_is_refused_naming_both(tmp_path: Path) -> None:
    ak.save_edits(tmp_path / "e", [ak.add("resid_post.1", torch.ones(384))])
    with pytest.raises(EditError, match=r"resid_post\.1 has width 48, the add has width 384"):
        tiny.model().run("w1 w2", edits=ak.load_edits(tmp_path / "e"))


def test_functions_cannot_be_saved(tmp_path: Path) -> None:
    edits = [ak.scale("s", 2.0), ak.apply("s", lambda x: x)]
    with pytest.raises(EditError, match="saved as data, and apply at s holds code"):
        ak.save_edits(tmp_path / "e", edits)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, edits = tmp_path / "e", [ak.scale("s", 2.0)]
    ak.save_edits(path, edits)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os if name == "fsync" else Path, name, full)
            with pytest.raises(DataError, match=r"writable: .*/e: No space left on device"):
                ak.save_edits(path, [ak.scale("s", 3.0)])
        assert_same(edits, ak.load_edits(path))
        assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(DataError, match=r"writable: .*nothing/e: No such file"):
        ak.save_edits(tmp_path / "nothing" / "e", edits)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[12] ^= 0xFF
    path.write_bytes(bytes(data))


def foreign(path: Path) -> None:
    save_file({"weight": torch.ones(3)}, path)


def noise(path: Path) -> None:
    path.write_bytes(b"no edits at all")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def rewritten(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the header and leave the tensors."""

    def write(path: Path) -> None:
        found = header(path)
        found = change(found) or found
        with safe_open(path, framework="pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        save_file(tensors, path, {edit_file.KEY: json.dumps(found)})

    return write


def not_finite(path: Path) -> None:
    found = header(path)
    save_file(
        {"0.vector": torch.full((D,), float("nan"))}, path, {edit_file.KEY: json.dumps(found)}
    )


def no_json(path: Path) -> None:
    save_file({"0.vector": torch.ones(D)}, path, {edit_file.KEY: "{"})


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (cut, "must be a whole safetensors file: .*/e.st"),
    "flipped": (flip, "must be (a whole|written by)"),
    "noise": (noise, "whole safetensors file"),
    "empty": (empty, "whole safetensors file"),
    "foreign": (foreign, "written by save_edits: .*/e.st has no 'actkit_edits'"),
    "newer": (
        rewritten(lambda h: h.update(format=2)),
        "reads edit files up to format 1: .*/e.st has format 2, written by actkit .*; update",
    ),
    "no version": (rewritten(lambda h: h.pop("format") and h), "header must be whole"),
    "no JSON": (no_json, "header must be whole"),
    "list": (rewritten(lambda h: [h]), "header must be whole"),
    "unknown operation": (
        rewritten(lambda h: h["edits"][0].update(operation="Multiply")),
        "unknown operation 'Multiply'",
    ),
    "code": (
        rewritten(lambda h: h["edits"][0].update(operation="Apply")),
        "unknown operation 'Apply'",
    ),
    "lost tensor": (
        rewritten(lambda h: h["edits"][0]["tensors"].update(vector="9")),
        "whole edits",
    ),
    "lost field": (rewritten(lambda h: h["edits"][0].pop("site") and h), "KeyError.'site'"),
    "text number": (rewritten(lambda h: h["edits"][0]["numbers"].update(scale="x")), "whole edits"),
    "bad place": (
        rewritten(lambda h: h["edits"][0]["where"].update(tokens="some")),
        "one of 'all'",
    ),
    "foreign place": (rewritten(lambda h: h["edits"][0]["where"].update(layer=1)), "whole edits"),
    "NaN": (not_finite, "s has NaN or infinite values in vector"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_and_foreign_files_are_named_and_refused(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    path = tmp_path / "e.st"
    ak.save_edits(path, [ak.add("s", tiny.uneven(D))])
    damage(path)
    with pytest.raises(DataError, match=message) as caught:
        ak.load_edits(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must exist, there is none at .*/nothing"):
        ak.load_edits(tmp_path / "nothing")
    with pytest.raises(DataError, match="must exist, there is none at"):
        ak.load_edits(tmp_path)
