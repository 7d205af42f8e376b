"""A sealed file is what was written or is refused, whichever bit is turned."""

import random
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import actkit as ak
from actkit.core.edits.files import KEY, edit_facts
from actkit.core.edits.where import Where
from actkit.core.errors import DataError, EditError
from actkit.core.sealed_file import check_seal, read_sealed, write_sealed
from tests.core import tiny
from tests.core.edits.test_edit_file import assert_same

EDITS = [
    ak.add("resid_post.1", tiny.uneven(7), 0.3, Where(tokens=[0, 2])),
    ak.project_out("z.1", tiny.uneven(2, 5), Where(tokens=torch.tensor([[True, False]]))),
    ak.clamp("mlp_out.*", -1.5, float("inf")),
]
REFUSED = (DataError, EditError)


def turned(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_turned_bit_is_refused(tmp_path: Path) -> None:
    path, copy = tmp_path / "e.st", tmp_path / "copy.st"
    ak.save_edits(path, EDITS, about="a café")
    data = path.read_bytes()
    told = re.search(rb'actkit_sha256":"[0-9a-f]{64}', data)
    assert told is not None
    assert_same(EDITS, ak.load_edits(path))
    bits = {*range(8 * 8), *range(8 * told.start(), 8 * told.end())}
    bits |= set(random.Random(0).sample(range(8 * len(data)), 600))
    for bit in sorted(bits):
        copy.write_bytes(turned(data, bit))
        with pytest.raises(REFUSED):
            ak.load_edits(copy)
        with pytest.raises(REFUSED):
            edit_facts(copy)


def test_without_a_seal_such_copies_load_other_numbers(tmp_path: Path) -> None:
    """The control: a file as earlier versions wrote it."""
    path, copy = tmp_path / "e.st", tmp_path / "copy.st"
    ak.save_edits(path, EDITS)
    with safe_open(path, framework="pt") as file:
        kept = file.metadata()[KEY].replace('"sealed": true, ', "")
    save_file(load_file(path), path, {KEY: kept})
    assert not check_seal(path, "an edit file")
    assert_same(EDITS, ak.load_edits(path))
    data = path.read_bytes()
    loaded = 0
    for bit in range(8 * len(data) - 64, 8 * len(data)):
        copy.write_bytes(turned(data, bit))
        try:
            loaded += bool(ak.load_edits(copy))
        except REFUSED:
            continue
    assert loaded > 30


@pytest.mark.parametrize("change", ["cut", "longer", "other tensors", "seal cut out"])
def test_larger_damage_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "e.st"
    ak.save_edits(path, EDITS)
    data = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    if change == "cut":
        path.write_bytes(data[:-1])
    elif change == "longer":
        path.write_bytes(data + b"\0")
    elif change == "other tensors":
        save_file({k: v.flip(-1) for k, v in load_file(path).items()}, path, metadata)
    else:
        save_file(load_file(path), path, {KEY: metadata[KEY]})
    with pytest.raises(DataError, match=r"an edit file must be .*e\.st"):
        ak.load_edits(path)


def test_two_edits_files_exchanged_bytes(tmp_path: Path) -> None:
    """Tensors of one file under the header of another, of the same shapes."""
    one, other = tmp_path / "1", tmp_path / "2"
    ak.save_edits(one, [ak.add("s", torch.ones(4))])
    ak.save_edits(other, [ak.add("s", torch.zeros(4))])
    one.write_bytes(one.read_bytes()[:-16] + other.read_bytes()[-16:])
    with pytest.raises(DataError, match="is damaged, its SHA-256 is"):
        ak.load_edits(one)


def test_the_helper_keeps_names_texts_and_dtypes(tmp_path: Path) -> None:
    tensors = {
        "a": tiny.uneven(3, 5).T,
        "b": torch.tensor(3),
        "c": torch.ones(2, 2, dtype=torch.bfloat16).expand(4, 2, 2),
        "d": torch.empty(0, 3),
    }
    told = {"text": 'a "quoted" text: "actkit_sha256":"' + "a" * 64 + '"', "other": ""}
    path = tmp_path / "any.safetensors"
    write_sealed(path, tensors, told, "a probe")
    found, metadata, sealed = read_sealed(path, "a probe")
    assert metadata == told and sealed
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in tensors.items())
    assert load_file(path).keys() == tensors.keys()
    path.write_bytes(turned(path.read_bytes(), 8 * path.stat().st_size - 1))
    with pytest.raises(DataError, match=r"a probe must be what was written: .*any.safetensors"):
        read_sealed(path, "a probe")
    with pytest.raises(DataError, match="a probe must exist"):
        read_sealed(tmp_path, "a probe")
