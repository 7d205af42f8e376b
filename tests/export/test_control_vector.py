"""GGUF control vectors and plain tensors by layer, out and in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from safetensors.torch import save_file

import actkit as ak
from actkit.core.edits.where import Where
from actkit.core.errors import DataError, EditError
from actkit.export.llama_cpp import load_vectors, save_gguf
from tests.core import tiny

V = tiny.uneven(tiny.WIDTH)


def vectors(edits: list[ak.Edit]) -> dict[str, torch.Tensor]:
    return {e.site: e.operation.tensors()["vector"] for e in edits}


def test_the_gguf_package_reads_what_was_written(tmp_path: Path) -> None:
    model, path = tiny.model(), tmp_path / "v.gguf"
    edits = [ak.add("resid_post.1", V, 0.5), ak.add("resid_post.2", V), ak.add("resid_post.1", V)]
    save_gguf(path, model, edits)
    reader = GGUFReader(str(path))
    facts = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert facts["general.architecture"] == "controlvector"
    assert facts["controlvector.model_hint"] == "llama"
    assert facts["controlvector.layer_count"] == tiny.LAYERS
    found = {t.name: np.array(t.data) for t in reader.tensors}
    assert set(found) == {"direction.1", "direction.2"}
    assert found["direction.1"].dtype == np.float32
    np.testing.assert_allclose(found["direction.1"], 1.5 * V.numpy(), rtol=1e-6)
    np.testing.assert_allclose(found["direction.2"], V.numpy())


def test_round_trip_steers_the_same(tmp_path: Path) -> None:
    model, path = tiny.model(), tmp_path / "v.gguf"
    edits = [ak.add("resid_post.1", V, 0.5), ak.add("resid_post.2", -V)]
    save_gguf(path, model, edits)
    one = model.run(tiny.PROMPTS, edits=edits, logits=True).logits
    other = model.run(tiny.PROMPTS, edits=load_vectors(path), logits=True).logits
    torch.testing.assert_close(one, other)


def test_a_file_as_repeng_writes_it(tmp_path: Path) -> None:
    """Architecture, hint, layer count, then one float32 tensor a layer, in any order."""
    path = tmp_path / "repeng.gguf"
    writer = GGUFWriter(str(path), "controlvector")
    writer.add_string("controlvector.model_hint", "mistral")
    writer.add_uint32("controlvector.layer_count", 2)
    for layer in (2, 1):
        writer.add_tensor(f"direction.{layer}", (layer * V).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = load_vectors(path, scale=0.5, where=Where(tokens="last"))
    assert {k: v.tolist() for k, v in vectors(found).items()} == {
        "resid_post.2": (2 * V).tolist(),
        "resid_post.1": V.tolist(),
    }
    assert {e.where.tokens for e in found} == {"last"}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_plain_tensors(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    named = {"direction.1": V, "layer_2": 2 * V}
    save_file(named, path) if suffix == ".safetensors" else torch.save(named, path)
    found = vectors(load_vectors(path))
    assert torch.equal(found["resid_post.1"], V)
    assert torch.equal(found["resid_post.2"], 2 * V)
    assert list(vectors(load_vectors({7: V, "8": V, "layers.9": V, "resid_post.10": V}))) == [
        "resid_post.7",
        "resid_post.8",
        "resid_post.9",
        "resid_post.10",
    ]


REFUSED: dict[str, tuple[Any, str]] = {
    "layer 0": (lambda: ak.add("resid_post.0", V), "no place for a vector at layer 0"),
    "another point": (lambda: ak.add("mlp_out.1", V), r"got add at mlp_out\.1"),
    "another operation": (lambda: ak.project_out("resid_post.1", V), "got project_out"),
    "some tokens": (lambda: ak.add("resid_post.1", V, where=Where(tokens="last")), "all_tokens"),
    "some rows": (lambda: ak.add("resid_post.1", V, where=Where(rows=0)), "all tokens"),
    "strengths by row": (lambda: ak.add("resid_post.1", V, torch.ones(3)), "same for all rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_cannot_do_is_refused(name: str, tmp_path: Path) -> None:
    make, rule = REFUSED[name]
    with pytest.raises(EditError, match=rule):
        save_gguf(tmp_path / "v.gguf", tiny.model(), [make()])
    assert not (tmp_path / "v.gguf").exists()


def test_edits_that_choose_tokens_may_be_let_act_on_all(tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    edits = [ak.add("resid_post.1", V, where=Where(tokens="last"))]
    save_gguf(path, tiny.model(), edits, all_tokens=True)
    assert load_vectors(path)[0].where.everywhere


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"head.3": V}, "head"),
        ({3: V[None]}, r"\(1, 48\)"),
        ({3: "v"}, "str"),
        ({}, "must be a vector"),
        ("missing.gguf", "none at"),
    ],
    ids=["name", "shape", "kind", "empty", "missing"],
)
def test_other_vectors_are_refused(given: Any, rule: str) -> None:
    with pytest.raises(DataError, match=rule):
        load_vectors(given)


def test_a_model_is_no_control_vector(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(str(path), "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_tensor("x", np.ones(3, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(DataError, match="got 'llama'"):
        load_vectors(path)
    (tmp_path / "v.bin").write_bytes(b"1")
    with pytest.raises(DataError, match=r"got v\.bin"):
        load_vectors(tmp_path / "v.bin")
