"""From what users write to sites: names, patterns, heads, aliases, module paths, refusals."""

from typing import Any

import pytest
import torch
from torch import nn

import actkit as ak
from actkit.core.errors import SiteError
from actkit.core.sites.site import POINTS
from actkit.model import Model
from tests.core import tiny


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


def names(m: Model, pattern: str | None = None, **settings: Any) -> list[str]:
    return [s.name for s in m.sites(pattern, **settings)]


def test_sites_come_in_the_order_of_a_forward_pass(m: Model) -> None:
    found = names(m, refused=True)
    assert found[0] == "embeddings" and found[-2:] == ["final_norm", "logits"]
    assert len(found) == 3 + 3 * (len(POINTS) - 3)
    assert [s for s in found if s.endswith(".1")] == [
        f"{p}.1" for p in POINTS if p not in ("embeddings", "final_norm", "logits")
    ]


def test_what_the_network_lacks_is_listed_with_its_reason(m: Model) -> None:
    every = {s.name: s for s in m.sites(refused=True)}
    assert "no experts" in every["router_logits.0"].refused
    assert not every["mlp_gate.0"].refused
    assert "router_logits.0" not in names(m)
    assert names(m, "router_logits.*", refused=True) == [f"router_logits.{i}" for i in range(3)]


def test_shapes_are_those_of_the_tensors(m: Model) -> None:
    sites = m.sites()
    rec = m.run(tiny.PROMPTS, record=[s.name for s in sites])
    sizes = {"batch": 3, "token": 7, "key": 7}
    for site in sites:
        assert site.shape is not None
        want = tuple(n if isinstance(n, int) else sizes[n] for n in site.shape)
        assert tuple(rec[site.name].shape) == want, site.name


def test_where_names_the_module(m: Model) -> None:
    """Where a point is a module's whole tensor, its address may be written instead."""
    where = {s.name: s.where for s in m.sites()}
    assert where["attn_probs.1"] == "beside model.layers.1.self_attn"
    rec = m.run("w1 w2", record=["mlp_out.1", "resid_mid.0", "resid_post.2", "logits"])
    same = m.run("w1 w2", record=[where[n] for n in rec], logits=True)
    for name, value in rec.items():
        assert torch.equal(value, same[where[name]])


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("resid_post.*", ["resid_post.0", "resid_post.1", "resid_post.2"]),
        ("resid_*.1", ["resid_pre.1", "resid_mid.1", "resid_post.1"]),
        ("resid_post.[02]", ["resid_post.0", "resid_post.2"]),
        ("?.1", ["q.1", "k.1", "v.1", "z.1"]),
        ("z.1.*", [f"z.1.{h}" for h in range(6)]),
        ("k.0.*", ["k.0.0", "k.0.1"]),
        ("z.*.3", [f"z.{i}.3" for i in range(3)]),
        ("attn_probs.[12].[05]", [f"attn_probs.{i}.{h}" for i in (1, 2) for h in (0, 5)]),
        ("blocks.*.hook_resid_post", [f"blocks.{i}.hook_resid_post" for i in range(3)]),
        ("blocks.[01].attn.hook_z", ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"]),
        ("model.layers.*.mlp:out", [f"model.layers.{i}.mlp:out" for i in range(3)]),
        ("*.self_attn:out.0", [f"model.layers.{i}.self_attn:out.0" for i in range(3)]),
        ("model.layers.*.mlp:in#0", [f"model.layers.{i}.mlp:in#0" for i in range(3)]),
        ("*.0.mlp.*_proj:in", [f"model.layers.0.mlp.{p}_proj:in" for p in ("gate", "up", "down")]),
    ],
)
def test_patterns(m: Model, pattern: str, found: list[str]) -> None:
    assert names(m, pattern) == found


def test_all_modules_that_run_and_no_lists(m: Model) -> None:
    found = names(m, "model*:out")
    assert "model.layers:out" not in found and "model.layers.2:out" in found
    assert {*m.run("w1 w2", record="*:out", logits=True)} == {*names(m, "*:out")}


def test_each_site_is_found_once(m: Model) -> None:
    rec = m.run("w1", record=["resid_post.1", "resid_post.*", "resid_post.1"])
    assert list(rec) == ["resid_post.1", "resid_post.0", "resid_post.2"]


ALIASES = {
    "hook_embed": "embeddings",
    "ln_final.hook_out": "final_norm",
    "unembed.hook_out": "logits",
    "blocks.1.hook_resid_pre": "resid_pre.1",
    "blocks.1.hook_resid_mid": "resid_mid.1",
    "blocks.1.hook_resid_post": "resid_post.1",
    "blocks.1.hook_attn_out": "attn_out.1",
    "blocks.1.hook_mlp_out": "mlp_out.1",
    "blocks.1.hook_mlp_in": "mlp_in.1",
    "blocks.1.hook_attn_in": "attn_in.1",
    "blocks.2.attn.hook_q": "q.2",
    "blocks.2.attn.hook_k": "k.2",
    "blocks.2.attn.hook_v": "v.2",
    "blocks.2.attn.hook_z": "z.2",
    "blocks.0.attn.hook_attn_scores": "attn_scores.0",
    "blocks.0.attn.hook_pattern": "attn_probs.0",
    "blocks.0.mlp.hook_pre": "mlp_gate.0",
    "blocks.0.mlp.hook_pre_linear": "mlp_pre.0",
    "blocks.0.mlp.hook_post": "mlp_hidden.0",
}


def test_names_of_transformerlens_are_aliases(m: Model) -> None:
    rec = m.run(tiny.PROMPTS, record=[*ALIASES, *ALIASES.values()])
    for alias, name in ALIASES.items():
        assert torch.equal(rec[alias], rec[name]), alias


def test_a_prefix_that_may_be_left_out_stays_in_the_name() -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    net: Any = BertModel(BertConfig(
        vocab_size=89, hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=40, max_position_embeddings=32,
    ))  # fmt: skip
    m = Model(net.eval())
    asked = ["encoder.resid_post.1", "resid_post.1", "encoder.z.0.1", "encoder.resid_pre.*"]
    rec = m.run([[1, 2, 3]], record=asked)
    assert {*asked[:3], "encoder.resid_pre.0", "encoder.resid_pre.1"} == {*rec}
    assert torch.equal(rec["encoder.resid_post.1"], rec["resid_post.1"])


def test_networks_without_a_table_are_addressed_by_path() -> None:
    m = Model(tiny.Cnn())
    assert names(m) == ["conv1:out", "conv2:out", "bn:out", "relu:out", "head:out"]
    assert "no table" in m.note or "module paths" in m.note
    assert m.sites("conv1:out")[0].shape is None
    with pytest.raises(SiteError, match="nearest: conv2:out, conv1:out"):
        m.sites("conv3:out")


def test_the_networks_own_input_and_output() -> None:
    net, x = nn.Sequential(nn.Linear(3, 2), nn.ReLU()), tiny.uneven(4, 3)
    rec = Model(net).run(x, record=[":in", ":out", "0:out"])
    assert torch.equal(rec[":in"], x) and torch.equal(rec[":out"], rec["0:out"].relu())
    doubled = Model(net).run(x, edits=[ak.scale(":out", 2.0)]).output
    assert torch.equal(doubled, 2 * rec[":out"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resid_pots.1", r"unknown site 'resid_pots\.1'; nearest: resid_post\.1"),
        ("resid_post.9", r"this network has resid_post\.0 to resid_post\.2"),
        ("resid_post", r"this network has resid_post\.0 to resid_post\.2"),
        ("xyzzy", "unknown site 'xyzzy'; nearest: none is close"),
        ("z.1.6", r"z\.1 has heads 0 to 5, got 6"),
        ("k.1.2", r"k\.1 has heads 0 to 1, got 2"),
        ("resid_post.1.2", "unknown site"),
        ("expert_hidden.*", r"this network has no expert_hidden\.\*: .* no experts"),
        ("blocks.9.hook_resid_post", "unknown site"),
        ("blocks.*.hook_nothing", "unknown site"),
        ("model.layers.0.mpl:out", "nearest: model.layers.0.mlp:out"),
        ("model.layers.0.mlp", r"tensors are model\.layers\.0\.mlp:in and .*:out"),
        ("model.layers.0.mlp:out.", "written path:in or path:out"),
        ("model.layers.0.mlp:out#x", "written path:in or path:out"),
        ("nothing*", "unknown site"),
    ],
)
def test_refusals_say_what_is_near_and_why(m: Model, name: str, message: str) -> None:
    with pytest.raises(SiteError, match=message):
        m.sites(name)
    with pytest.raises(KeyError):
        m.sites(name)


def test_a_site_by_its_name() -> None:
    m = tiny.model()
    site = m.site("blocks.1.hook_resid_post")
    assert (site.canonical, site.point, site.layer, site.depth) == (
        "resid_post.1", "resid_post", 1, 1
    )  # fmt: skip
    assert m.site("model.norm:out").layer is None
    with pytest.raises(SiteError, match=r"'resid_post\.\*' must be one site, it matches 3"):
        m.site("resid_post.*")
    with pytest.raises(SiteError, match="final_norm stands in no layer"):
        _ = m.site("final_norm").depth
