"""Baked and exported edits do what the edits do, in the formats' own readers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import actkit as ak
from actkit.core.edits.where import Where
from actkit.core.errors import EditError
from actkit.export.lower import bake, save_peft
from actkit.model import Model
from tests.core import tiny

V = tiny.uneven(tiny.WIDTH)
MATRIX = torch.eye(tiny.WIDTH) + 0.3 * tiny.uneven(tiny.WIDTH, tiny.WIDTH, seed=1)
HEAD = tiny.uneven(tiny.WIDTH // tiny.HEADS, seed=3)
WIDE = tiny.uneven(tiny.HIDDEN, seed=2)

EDITS: dict[str, list[ak.Edit]] = {
    "add after a block": [ak.add("resid_post.1", V, 0.5)],
    "add after every block": [ak.add("resid_post.*", V, 0.1)],
    "add in the middle": [ak.add("resid_mid.0", V, -0.5)],
    "two at one place": [ak.add("mlp_out.1", V), ak.project_out("mlp_out.1", V + 1)],
    "and in the other order": [ak.project_out("mlp_out.1", V + 1), ak.add("mlp_out.1", V)],
    "project out of attention": [ak.project_out("attn_out.*", torch.stack([V, V.flip(0)]))],
    "affine": [ak.affine("attn_out.2", MATRIX, V)],
    "affine without a bias": [ak.affine("mlp_out.0", MATRIX)],
    "scale a module": [ak.scale("mlp_out.1", 0.3)],
    "scale units": [ak.scale("mlp_pre.1", WIDE)],
    "into what reads": [ak.add("mlp_in.1", V), ak.project_out("attn_in.0", V)],
    "a vector for each head": [ak.add("z.1", HEAD), ak.add("q.0.3", HEAD)],
    "some heads and units": [
        ak.scale("z.2", 0.0, Where(heads=[1, 4])),
        ak.add("mlp_out.1", V, where=Where(units=slice(3, 20))),
    ],
    "under other names": [ak.add("blocks.1.hook_resid_post", V)],
    "by module path": [ak.add("model.layers.1.mlp.gate_proj:out", WIDE)],
}
each = pytest.mark.parametrize("name", EDITS)
ODD = [[7, 3, 11, 2, 5], [60, 4]]


def logits(model: Model, edits: Any = ()) -> torch.Tensor:
    rec = model.run(ODD, edits=edits, logits=True)
    return rec.logits[rec.rows.valid]


@each
def test_a_baked_network_does_what_the_edits_do(name: str) -> None:
    model = tiny.model()
    with tiny.untouched(model.module):
        baked = bake(model, EDITS[name])
    expected = logits(model, EDITS[name])
    torch.testing.assert_close(logits(baked), expected, rtol=1e-4, atol=1e-4)
    assert (expected - logits(model)).abs().max() > 1e-2


@each
def test_the_config_keeps_new_biases_on_disk(name: str, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    baked = bake(tiny.model(), EDITS[name])
    module: Any = baked.module
    module.save_pretrained(tmp_path)
    kept: Any = LlamaForCausalLM.from_pretrained(tmp_path)
    again = Model(kept.eval(), baked.tokenizer)
    assert torch.equal(logits(again), logits(baked))


@each
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")
def test_peft_opens_the_adapter_and_does_what_the_edits_do(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = tiny.model()
    save_peft(tmp_path / "adapter", model, EDITS[name])
    expected = logits(model, EDITS[name])
    adapted = Model(peft.PeftModel.from_pretrained(tiny.llama(), tmp_path / "adapter"))
    torch.testing.assert_close(logits(adapted), expected, rtol=1e-4, atol=1e-4)


def test_a_projection_is_an_adapter_of_its_own_rank(tmp_path: Path) -> None:
    import json

    pytest.importorskip("peft")
    save_peft(tmp_path, tiny.model(), [ak.project_out("mlp_out.1", torch.stack([V, V.flip(0)]))])
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 2


def test_maps_of_gpt2_are_turned() -> None:
    model = Model(tiny.gpt2(), tiny.tokenizer())
    v = tiny.uneven(36)
    edits = [ak.project_out("mlp_out.0", v), ak.add("resid_post.1", v)]
    torch.testing.assert_close(
        logits(bake(model, edits)), logits(model, edits), rtol=1e-4, atol=1e-4
    )


def test_half_precision() -> None:
    model = tiny.model(torch.bfloat16)
    baked = bake(model, [ak.add("resid_post.1", V, 0.5)])
    assert next(baked.module.parameters()).dtype == torch.bfloat16


def test_a_network_that_is_no_language_model() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    x = tiny.uneven(2, 3, 5)
    model = ak.open(net)
    baked = bake(model, [ak.add("2:out", torch.ones(3), 2.0)], inputs=x)
    torch.testing.assert_close(baked.module(x), net(x) + 2)


REFUSED: dict[str, tuple[Any, str]] = {
    "clamp": (lambda: ak.clamp("mlp_out.1", -1, 1), "can be lowered, got clamp at mlp_out.1"),
    "set": (lambda: ak.set("mlp_out.1", V), "got set"),
    "some tokens": (lambda: ak.add("mlp_out.1", V, where=Where(tokens="last")), "everywhere"),
    "rows": (lambda: ak.add("mlp_out.1", V, torch.ones(2)), "differs by row"),
    "a map of the stream": (lambda: ak.project_out("resid_post.1", V), "other ways than one map"),
    "logits": (lambda: ak.add("logits", torch.ones(tiny.WORDS)), r"lm_head \(Linear\) has no bias"),
    "attention": (lambda: ak.scale("attn_scores.1", 2.0), "written and read by none"),
    "nothing": (lambda: ak.add("mlp_out.1", V, 0.0), "changes something"),
}


@each
def test_the_file_of_an_adapter_is_sealed(name: str, tmp_path: Path) -> None:
    """PEFT, which knows no seals, opens it all the same."""
    from actkit.core.sealed_file import read_sealed

    save_peft(tmp_path, tiny.model(), EDITS[name])
    tensors, _, sealed = read_sealed(tmp_path / "adapter_model.safetensors", "an adapter's file")
    assert sealed and all(t.isfinite().all() for t in tensors.values())


def test_an_adapter_takes_maps_only_and_nothing_is_written_otherwise(tmp_path: Path) -> None:
    for edit, rule in (
        (ak.scale("embeddings", 2.0), "embed_tokens is no map"),
        (ak.add("embeddings", V), "embed_tokens is no map"),
        (ak.clamp("mlp_out.1", -1, 1), "got clamp"),
    ):
        with pytest.raises(EditError, match=rule):
            save_peft(tmp_path / "adapter", tiny.model(), [edit])
    assert not (tmp_path / "adapter").exists()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_network_with_an_adapter_is_refused_until_it_is_merged(tmp_path: Path) -> None:
    """Of a network with an adapter only the adapter is saved, so weights would be lost."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(5)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(tiny.llama(), config).eval()
    model, edits = Model(wrapped), [ak.add("resid_post.1", V)]
    expected = logits(model, edits)
    for door in (lambda: bake(model, edits), lambda: save_peft(tmp_path / "a", model, edits)):
        with pytest.raises(EditError, match="merge it first"):
            door()
    assert not (tmp_path / "a").exists()
    baked = bake(Model(wrapped.merge_and_unload()), edits)
    torch.testing.assert_close(logits(baked), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_weight_can_stand_for_is_refused(name: str) -> None:
    make, rule = REFUSED[name]
    with pytest.raises(EditError, match=rule):
        bake(tiny.model(), [make()])
