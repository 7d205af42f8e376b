"""A site is the same site under every name: its point, its block and what is written of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader

import actkit as ak
from actkit.core.errors import EditError, SiteError
from actkit.core.sites.site import WHOLE
from actkit.core.sites.site_names import layer_of, plain_name
from actkit.export.llama_cpp import load_vectors, save_gguf
from actkit.model import Model
from actkit.steer._states import by_layer
from actkit.trace._parts import Part
from tests.core import tiny

V = tiny.uneven(tiny.WIDTH)


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


def test_every_site_says_its_point_and_its_block(m: Model) -> None:
    for site in m.sites(refused=True):
        point, _, layer = site.name.partition(".")
        assert (site.point, site.layer) == (point, None if point in WHOLE else int(layer))
        assert site.canonical == site.name


@pytest.mark.parametrize(
    ("name", "canonical", "point", "layer"),
    [
        ("blocks.2.hook_resid_post", "resid_post.2", "resid_post", 2),
        ("blocks.1.mlp.hook_pre", "mlp_gate.1", "mlp_gate", 1),
        ("hook_embed", "embeddings", "embeddings", None),
        ("z.1.3", "z.1.3", "z", 1),
        ("model.layers.1.mlp:out", "model.layers.1.mlp:out", "", None),
    ],
)
def test_whatever_it_is_called(
    m: Model, name: str, canonical: str, point: str, layer: int | None
) -> None:
    (site,) = m.sites(name)
    assert (site.name, site.canonical, site.point, site.layer) == (name, canonical, point, layer)


def test_in_a_network_with_two_stacks_and_in_one_whose_prefix_may_be_left_out() -> None:
    from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

    small: dict[str, Any] = {"num_layers": 2, "num_heads": 2, "d_kv": 5, "d_ff": 13, "d_model": 10}
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=31, **small))
    (site,) = Model(t5).sites("decoder.mlp_out.1")
    assert (site.canonical, site.point, site.layer) == ("decoder.mlp_out.1", "mlp_out", 1)
    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=31,
            hidden_size=12,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=17,
        )
    )
    (site,) = Model(bert).sites("encoder.mlp_out.1")
    assert (site.canonical, site.point, site.layer) == ("mlp_out.1", "mlp_out", 1)


def test_a_control_vector_of_an_alias(m: Model, tmp_path: Path) -> None:
    for name in ("blocks.2.hook_resid_post", "blocks.[12].hook_resid_post"):
        save_gguf(tmp_path / "alias.gguf", m, [ak.add(name, V, 0.5)])
        save_gguf(tmp_path / "own.gguf", m, [ak.add(m.sites(name)[0].canonical, V, 0.5)])
        alias, own = (GGUFReader(str(tmp_path / f"{n}.gguf")) for n in ("alias", "own"))
        told = {t.name: t.data.tolist() for t in alias.tensors}
        assert {t.name: t.data.tolist() for t in own.tensors}.items() <= told.items()
        assert len(told) == len(m.sites(name))
    with pytest.raises(EditError, match="layer 0"):
        save_gguf(tmp_path / "v.gguf", m, [ak.add("blocks.0.hook_resid_post", V)])
    with pytest.raises(EditError, match=r"got add at blocks.1.hook_mlp_out"):
        save_gguf(tmp_path / "v.gguf", m, [ak.add("blocks.1.hook_mlp_out", V)])
    (edit,) = load_vectors({"blocks.2.hook_resid_post": V})
    assert edit.site == "resid_post.2"


def test_layers_are_read_off_names_without_a_network() -> None:
    assert layer_of("decoder.resid_post.12") == 12
    assert layer_of("blocks.7.attn.hook_z") == 7
    for name in ("logits", "model.layers.1.mlp:out", "blocks.1.hook_nothing", "layer.3"):
        with pytest.raises(SiteError, match=r"resid_post.3, got"):
            layer_of(name)
    assert plain_name("blocks.4.mlp.hook_pre") == "blocks.4.mlp.hook_pre"  # gate or map: unknown
    read = {"blocks.0.hook_resid_post": torch.ones(2), "blocks.1.hook_resid_post": torch.ones(2)}
    assert list(by_layer(read)) == [0, 1]


def test_a_part_is_the_same_part_under_an_alias() -> None:
    part = Part("blocks.1.attn.hook_z", head=1)
    assert part == Part("z.1", head=1)
    assert part.layer == 1
