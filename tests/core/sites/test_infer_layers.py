"""What structure finds where blocks differ, and what it must not take for a point."""

from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

import actkit as ak
from actkit.core.errors import SiteError
from actkit.core.sites import discover as networks
from actkit.model import Model
from tests.architectures.build import build
from tests.core.sites.architectures import parity
from tests.core.sites.architectures.parity import close, randomised
from tests.core.sites.architectures.test_decoders import GATED, TOKENS

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [12, 90, 2, 55, 71, 8, 30]])


def opened(kind: str) -> Model:
    return Model(build(kind).network)


def kernel_outputs(network: Any, path: str, ids: Tensor) -> list[Tensor]:
    """Return what reaches the output map of each block that has it, (B, T, D)."""
    found: list[Tensor] = []
    blocks = list(network.get_submodule(path))
    handles = [
        b.self_attn.o_proj.register_forward_pre_hook(lambda _, args: found.append(args[0]))
        for b in blocks
        if hasattr(b, "self_attn")
    ]
    with torch.no_grad():
        network(input_ids=ids)
    for handle in handles:
        handle.remove()
    return found


def test_widths_and_numbers_of_heads_may_differ_by_layer() -> None:
    """Gemma 4: heads of 12 in sliding layers, of 24 in full ones."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    settings: dict[str, Any] = {**GATED, "head_dim": 12, "global_head_dim": 24}
    settings |= {"layer_types": kinds, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 99}
    settings |= {"hidden_size_per_layer_input": 8, "sliding_window": 4}
    m = Model(randomised(tf.Gemma4ForCausalLM(tf.Gemma4TextConfig(**settings)), std=0.15))
    heads = settings["num_attention_heads"]
    shapes = [m.sites(f"z.{i}")[0].shape for i in range(3)]
    assert [s[2:] for s in shapes if s] == [(heads, 12), (heads, 12), (heads, 24)]
    rec = m.run({"input_ids": IDS}, "z.*")
    for i, wanted in enumerate(kernel_outputs(m.module, "model.layers", IDS)):
        assert rec[f"z.{i}"].flatten(2).equal(wanted)
    one_head = m.run({"input_ids": IDS}, "resid_post.2", [ak.scale("z.2", 0.0, ak.Where(heads=1))])

    def silence(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].clone()
        x[..., 24:48] = 0
        return (x,)

    net: Any = m.module
    handle = net.model.layers[2].self_attn.o_proj.register_forward_pre_hook(silence)
    wanted = m.run({"input_ids": IDS}, "resid_post.2")["resid_post.2"]
    handle.remove()
    close(one_head["resid_post.2"], wanted)


@pytest.mark.parametrize(
    ("kind", "holds"),
    [
        ("qwen3_next", {"attn_probs": [1], "attn_out": [0, 1, 2]}),
        ("lfm2", {"z": [1], "attn_probs": [1]}),
        ("bamba", {"z": [1], "attn_probs": [1]}),
        ("granitemoehybrid", {"z": [1], "attn_probs": [1]}),
        ("minimax", {"z": [0, 2], "attn_probs": [0, 2]}),
        ("jamba", {"z": [1], "resid_post": [0, 1, 2]}),
        ("zamba2", {"resid_post": [0, 1, 2]}),
    ],
)
def test_a_point_holds_where_it_holds(kind: str, holds: dict[str, list[int]]) -> None:
    m = opened(kind)
    for point, blocks in holds.items():
        had = [s.name for s in m.sites() if s.name.startswith(f"{point}.")]
        assert had == [f"{point}.{i}" for i in blocks]
    assert [s.name for s in m.sites("resid_post.*")] == [f"resid_post.{i}" for i in range(3)]
    rec = m.run({"input_ids": IDS}, [s.name for s in m.sites()])
    with torch.no_grad():
        states = m.module(input_ids=IDS, output_hidden_states=True).hidden_states
    close(rec["resid_post.0"], states[1])


def test_where_it_does_not_hold_the_reason_names_the_block() -> None:
    m = opened("lfm2")
    with pytest.raises(SiteError, match="this Lfm2DecoderLayer has no attention by its name but"):
        m.run({"input_ids": IDS}, "z.0")


@pytest.mark.parametrize("kind", ["bitnet", "diffllama", "afmoe", "beam", "laguna"])
def test_what_stands_behind_a_norm_or_gate_is_no_mix_of_values(kind: str) -> None:
    if kind not in tf.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    m = opened(kind)
    with pytest.raises(SiteError, match=r"z.0: by structure: no map .* without a norm or gate"):
        m.run({"input_ids": IDS}, "z.0")
    assert m.sites("resid_post.0")


def test_embeddings_are_of_the_tokens_not_of_the_positions() -> None:
    """A decoder of BART looks positions up by the ids, too."""
    config = tf.BartConfig(
        vocab_size=99, d_model=48, decoder_layers=3, decoder_attention_heads=6,
        decoder_ffn_dim=80, max_position_embeddings=64, is_encoder_decoder=False,
    )  # fmt: skip
    m = Model(randomised(tf.BartForCausalLM(config)))
    net: Any = m.module
    with torch.no_grad():
        wanted = net.get_input_embeddings()(IDS)
    assert m.run({"input_ids": IDS}, "embeddings")["embeddings"].equal(wanted)


def test_embeddings_that_are_scaled_in_place_are_read_before_that() -> None:
    settings: dict[str, Any] = {**TOKENS, "n_embd": 48, "n_layer": 2, "n_head": 4, "dff": 80}
    m = Model(randomised(tf.CTRLLMHeadModel(tf.CTRLConfig(**settings))))
    net: Any = m.module
    with torch.no_grad():
        wanted = net.get_input_embeddings()(IDS)
    rec = m.run({"input_ids": IDS}, ["embeddings", "resid_post.1"])
    assert rec["embeddings"].equal(wanted)


def test_blocks_that_run_again_are_refused() -> None:
    m = opened("hrm_text")
    assert m.note.endswith("its blocks run more than once in one pass")


@pytest.mark.parametrize("kind", ["xlnet", "fsmt"])
def test_rows_are_rows_where_tokens_stand_first(kind: str) -> None:
    m = opened(kind)
    lists = ["transformer.layer.1:out"] if kind == "xlnet" else ["model.encoder.layers.1:out"]
    feed = {"input_ids": IDS}
    if kind == "fsmt":
        feed["decoder_input_ids"] = IDS[:, :4]
    rec = m.run(feed, lists)
    raw: list[Tensor] = []
    handle = m.module.get_submodule(lists[0].removesuffix(":out")).register_forward_hook(
        lambda _, __, y: raw.append(y[0])
    )
    with torch.no_grad():
        m.module(**feed)
    handle.remove()
    assert raw[0].shape[:2] == (7, 2)  # (T, B, D)
    assert rec[lists[0]].equal(raw[0].transpose(0, 1))
    assert rec.rows_of(lists[0]).sample[1, 3] == 1
    edit = ak.set(lists[0], torch.zeros(raw[0].shape[-1]), ak.Where(rows=1))
    changed = m.run(feed, lists, [edit])[lists[0]]
    assert changed[0].equal(rec[lists[0]][0]) and not changed[1].any()


def test_a_block_that_does_not_run_is_refused_and_the_rest_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(networks, "tables", dict)
    m = opened("mllama")
    with pytest.raises(SiteError, match="does not run where the network reads input_ids alone"):
        m.run({"input_ids": IDS}, "resid_post.1")
    assert m.run({"input_ids": IDS}, "resid_post.2")["resid_post.2"].shape == (2, 7, 48)


@pytest.mark.parametrize("kind", ["deit", "dinov3_vit"])
def test_images_have_a_stream_too(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.architectures.feed import even

    monkeypatch.setattr(networks, "tables", dict)
    built = build(kind)
    feed, m = even(built), Model(built.network)
    assert m.note.startswith("found by structure: 3 blocks of ")
    with torch.no_grad():
        states = built.network(**feed, output_hidden_states=True).hidden_states
    rec = m.run(feed, ["resid_pre.*", "resid_post.*"])
    for i in range(3):
        close(rec[f"resid_pre.{i}"], states[i])
    parity.check_sums(m, feed, mid=False)
