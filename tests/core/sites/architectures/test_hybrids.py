"""Decoders whose blocks differ: Jamba, OLMo Hybrid, Llama 3.2 Vision, Zamba 2, Gemma 4; Phi-4."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

import actkit as ak
from actkit.core.errors import SiteError
from actkit.model import Model
from tests.core import tiny
from tests.core.sites.architectures import by_hand, parity
from tests.core.sites.architectures.parity import ROWS, close, randomised

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "hidden_size": 48,
    "intermediate_size": 36,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
JAMBA: dict[str, Any] = {
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 3,
    "expert_layer_offset": 1,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "mamba_d_state": 5,
    "mamba_dt_rank": 3,
}
OLMO: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 3,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 10,
}
ZAMBA: dict[str, Any] = {
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    "mamba_d_state": 5,
    "n_mamba_heads": 6,
    "mamba_headdim": 16,
    "mamba_ngroups": 2,
    "num_mem_blocks": 2,
    "adapter_rank": 3,
    "use_mem_rope": True,
}
GEMMA: dict[str, Any] = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "sliding_window": 4,
    "head_dim": 8,
    "global_head_dim": 12,
    "vocab_size_per_layer_input": 101,
    "hidden_size_per_layer_input": 7,
}
PHI: dict[str, Any] = {
    "vision_config": {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 1,
                      "num_attention_heads": 2, "crop_size": 28, "patch_size": 14},
    "audio_config": {"hidden_size": 24, "intermediate_size": 20, "num_blocks": 1,
                     "num_attention_heads": 2, "input_size": 16},
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
}  # fmt: skip


def jamba() -> Any:
    return tf.JambaForCausalLM(tf.JambaConfig(**SIZES, **JAMBA))


def olmo_hybrid() -> Any:
    return tf.OlmoHybridForCausalLM(tf.OlmoHybridConfig(**SIZES, **OLMO))


def zamba2(**own: Any) -> Any:
    made = tf.Zamba2ForCausalLM(tf.Zamba2Config(**{**SIZES, **ZAMBA, **own}))
    blocks = [made.model.layers[i].shared_transformer for i in made.config.hybrid_layer_ids]
    adapters = [b.feed_forward.gate_up_proj_adapter_list[i] for i, b in enumerate(blocks)]
    if any(isinstance(adapter, torch.nn.Identity) for adapter in adapters):
        # some versions give every block the adapters of the last one, and then cannot run
        return zamba2(**{**own, "num_mem_blocks": 1})
    return made


def gemma4(**own: Any) -> Any:
    return tf.Gemma4ForCausalLM(tf.Gemma4TextConfig(**SIZES, **{**GEMMA, **own}))


def mllama() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4}
    sizes = {**SIZES, "bos_token_id": 1, "eos_token_id": 2}
    config = tf.MllamaTextConfig(**sizes, cross_attention_layers=[1], rope_parameters=rope)
    return tf.MllamaForCausalLM(config)


def phi4() -> Any:
    return tf.Phi4MultimodalForCausalLM(tf.Phi4MultimodalConfig(**SIZES, **PHI))


EXPERTS = {"enable_moe_block": True, "num_experts": 5, "top_k_experts": 2}
NETWORKS: dict[str, tuple[str, Callable[[], Any]]] = {
    "jamba": ("jamba", jamba),
    "olmo_hybrid": ("olmo_hybrid", olmo_hybrid),
    "zamba2": ("zamba2", zamba2),
    "gemma4": ("gemma4_text", gemma4),
    "gemma4-shared": (
        "gemma4_text",
        lambda: gemma4(num_kv_shared_layers=2, use_double_wide_mlp=True),
    ),
    "gemma4-experts": (
        "gemma4_text",
        lambda: gemma4(
            attention_k_eq_v=True,
            num_global_key_value_heads=1,
            moe_intermediate_size=20,
            hidden_size_per_layer_input=0,
            **EXPERTS,
        ),
    ),
    "phi4_multimodal": ("phi4_multimodal", phi4),
}
FULL = {
    "jamba": [1, 3],
    "olmo_hybrid": [1, 3],
    "zamba2": [1, 3],
    **{n: [0, 1, 2, 3] for n in ("gemma4", "gemma4-shared", "gemma4-experts", "phi4_multimodal")},
}
"""Blocks with attention over keys."""


def network(name: str) -> Any:
    kind, make = NETWORKS[name]
    if reason := by_hand.missing(kind):
        pytest.skip(reason)
    torch.manual_seed(0)
    module = randomised(make(), seed=len(name))
    for path, buffer in module.named_buffers():
        if path.endswith("layer_scalar"):
            buffer.fill_(0.8)
    return module


@pytest.fixture(params=NETWORKS)
def opened(request: pytest.FixtureRequest) -> tuple[str, Model]:
    return request.param, Model(network(request.param))


def test_sites_and_states(opened: tuple[str, Model]) -> None:
    name, m = opened
    rec = parity.check_sites(m, ROWS)
    assert m.note.startswith("points from the table of ")
    by_hand.check_embeddings(m)
    assert rec["logits"].equal(parity.reference(m.module, m, ROWS).logits)
    seen: dict[int, Tensor] = {}
    handles = []
    net: Any = m.module
    for i, block in enumerate(net.model.layers):

        def keep(_: Any, __: Any, y: Any, at: int = i) -> None:
            seen[at] = (y[0] if isinstance(y, tuple) else y).clone()

        handles.append(block.register_forward_hook(keep))
    parity.reference(m.module, m, ROWS)
    for handle in handles:
        handle.remove()
    for i in range(4):
        assert rec[f"resid_post.{i}"].equal(seen[i])
        if i:
            assert rec[f"resid_pre.{i}"].equal(seen[i - 1])
    states = parity.reference(m.module, m, ROWS, output_hidden_states=True).hidden_states
    if name != "zamba2":  # it calls some of its blocks' parts states, too
        for i in range(4):
            close(rec[f"resid_pre.{i}"], states[i])
    close(rec["final_norm"], states[-1])


def test_attention_holds_where_there_is_attention(opened: tuple[str, Model]) -> None:
    name, m = opened
    names = [s.name for s in m.sites("attn_probs.*")]
    assert names == [f"attn_probs.{i}" for i in FULL[name]]
    twin = parity.eager(m.module)
    wanted = parity.reference(twin, m, ROWS, output_attentions=True).attentions
    rec = m.run(ROWS, names)
    own = [p for p in wanted if isinstance(p, Tensor) and p.dim() == 4]
    assert len(own) == len(names)
    for site, probs in zip(names, own, strict=True):
        valid = rec.rows_of(site).valid
        close(rec[site].transpose(1, 2)[valid], probs.transpose(1, 2)[valid])


def test_heads_and_sums(opened: tuple[str, Model]) -> None:
    name, m = opened
    rec, _ = parity.whole_run(m, ROWS)
    net: Any = m.module
    for i, block in enumerate(net.model.layers):
        if f"z.{i}" in rec:
            project = m.module.get_submodule(m.sites(f"z.{i}")[0].place.path)
            with torch.no_grad():
                raw = project(rec[f"z.{i}"].flatten(2))
                norm: Any = getattr(block, "post_attention_layernorm", None)
                raw = norm(raw) if name[:5] in ("olmo_", "gemma") else raw
            if f"attn_out.{i}" in rec:
                close(raw, rec[f"attn_out.{i}"])
        if f"resid_mid.{i}" not in rec:
            continue
        pre, mid, post = (rec[f"resid_{p}.{i}"] for p in ("pre", "mid", "post"))
        if f"attn_out.{i}" in rec:
            close(pre + rec[f"attn_out.{i}"], mid)
        total = mid + rec[f"mlp_out.{i}"]
        if name.startswith("gemma4"):
            total = _gemmas_rest(m, i, total, rec.tokens if hasattr(rec, "tokens") else None)
        close(total, post)


def _gemmas_rest(m: Model, block: int, total: Tensor, _: Any) -> Tensor:
    """Add the inputs of the layer, where there are any, and apply the block's own number."""
    net: Any = m.module
    own = net.model.layers[block]
    if own.hidden_size_per_layer_input:
        site = f"model.layers.{block}.post_per_layer_input_norm:out"
        total = total + m.run(ROWS, site)[site]
    scaled: Tensor = total * own.layer_scalar
    return scaled


def test_edits(opened: tuple[str, Model]) -> None:
    _, m = opened
    parity.check_edits(m, ROWS[:1])
    for site in ("resid_post.0", "resid_post.1"):
        by_hand.check_add_is_a_hook(m, ROWS, site)
    parity.check_cleanup(m, ROWS, "model.layers.2")
    batch = m.encode(ROWS)
    inputs = {k: batch.kwargs[k] for k in ("input_ids", "attention_mask")}
    by_hand.check_generation(m, inputs, "resid_post.1", steps=4)


def test_the_middle_of_the_stream_is_the_stream(opened: tuple[str, Model]) -> None:
    name, m = opened
    if name == "zamba2":
        with pytest.raises(SiteError, match="goes to the mixer"):
            m.sites("resid_mid.1")
        return
    parity.check_stream(m, ROWS, block=1)


def test_ragged_rows_are_those_of_single_prompts(opened: tuple[str, Model]) -> None:
    _, m = opened
    names = [s.name for s in m.sites()]
    rec = m.run(ROWS, names)
    for b, row in enumerate(ROWS):
        one = m.run([row], names)
        for site in m.sites():
            valid = rec.rows_of(site.name).valid[b]
            x = rec[site.name][b]
            x = x[:, valid][..., valid] if "S" in site.axes else x[valid]
            close(x, one[site.name][0], 1e-4)


def test_sweeps_equal_single_runs(opened: tuple[str, Model]) -> None:
    _, m = opened
    vector = by_hand.uneven_vector(48)
    variants = [[ak.add(s, vector, 0.5)] for s in ("resid_post.1", "resid_post.2")]
    swept = m.sweep(ROWS, variants, metric=lambda x: x[:, 0, 7], at="last")
    for variant, row in zip(variants, swept, strict=True):
        for b, ids in enumerate(ROWS):
            close(m.run([ids], "logits", variant)["logits"][:, -1, 7], row[b : b + 1], 1e-4)


def test_shapes_differ_by_block() -> None:
    m = Model(network("gemma4-shared"))
    assert [m.sites(f"z.{i}")[0].shape[-1] for i in range(4)] == [8, 12, 8, 12]  # type: ignore[index]
    assert m.sites("mlp_hidden.3")[0].shape == ("batch", "token", 72)
    reasons = {"k.2": "from an earlier block", "router_logits.0": "no experts"}
    for site, reason in reasons.items():
        with pytest.raises(SiteError, match=reason):
            m.sites(site)
    with pytest.raises(SiteError, match="for values: read k"):
        Model(network("gemma4-experts")).sites("v.1")


def test_what_blocks_lack_says_why() -> None:
    reasons = {
        "jamba": {"z.0": "a state space", "router_logits.0": "a plain MLP"},
        "olmo_hybrid": {"attn_probs.0": "a gated delta rule"},
        "zamba2": {"z.0": "no attention or MLP", "mlp_out.1": "goes to the mixer"},
    }
    for name, sites in reasons.items():
        m = Model(network(name))
        for site, reason in sites.items():
            with pytest.raises(SiteError, match=reason):
                m.sites(site)
    adapters = {"use_shared_attention_adapter": True, "num_key_value_heads": 6}
    adapted = Model(randomised(zamba2(**adapters)))
    with pytest.raises(SiteError, match="adapters are added"):
        adapted.sites("q.1")
    parity.check_sites(adapted, ROWS)


def test_jambas_and_gemmas_experts() -> None:
    """The experts' weighted sum, by their own weights, is what the MLP (or the experts) return."""
    for name, block, path in (("jamba", 1, "feed_forward"), ("gemma4-experts", 2, "")):
        m = Model(network(name))
        own: Any = m.module.get_submodule(f"model.layers.{block}.{path}".rstrip("."))
        returned = f"model.layers.{block}.{path}.experts".replace("..", ".") + ":out"
        points = [f"{p}.{block}" for p in ("router_logits", "router_weights", "expert_hidden")]
        if name == "jamba" and isinstance(own.router, torch.nn.Linear):
            with pytest.raises(SiteError, match="weighs experts outside of modules"):
                m.sites(points[1])
            rec = m.run(ROWS, [points[0], points[2], returned])
        else:
            rec = m.run(ROWS, [*points, returned])
        probs = rec[points[0]].softmax(-1)
        top = probs.topk(2)
        weights = top.values
        if name == "gemma4-experts":
            weights = weights / weights.sum(-1, keepdim=True)
            weights = weights * own.router.per_expert_scale[top.indices].detach()
        if points[1] in rec:
            close(rec[points[1]], weights)
        down = own.experts.down_proj.detach()[top.indices]
        total = torch.einsum("btcdf,btcf->btcd", down, rec[points[2]]) * weights[..., None]
        close(total.sum(-2).flatten(0, 1), rec[returned])
        vector = torch.linspace(-1.5, 2.0, 5)
        listed = [p for p in points if p in rec]
        moved = m.run(ROWS, listed, [ak.add(points[0], vector)])
        assert all(moved[p].shape for p in listed)
        close(moved[points[0]], rec[points[0]] + vector)


def test_llama_vision_attends_to_images_in_its_own_blocks() -> None:
    m = Model(randomised(mllama()))
    states = tiny.uneven(2, 5, 48)
    inputs = {
        "input_ids": torch.tensor([[5, 17, 3, 88], [7, 9, 30, 11]]),
        "cross_attention_states": states,
    }
    rec = parity.check_sites(m, inputs)
    hidden = parity.reference(m.module, m, inputs, output_hidden_states=True).hidden_states
    for i in range(4):
        close(rec[f"resid_pre.{i}"], hidden[i])
    by_hand.check_embeddings(m)
    by_hand.check_add_is_a_hook(m, inputs, "resid_post.1")
    by_hand.check_add_is_a_hook(m, inputs, "resid_post.2")
    parity.check_edits(m, inputs)
    block: Any = m.module.get_submodule("model.layers.1")
    with torch.no_grad():
        added = block.cross_attn.o_proj(rec["z.1"].flatten(2)) * block.cross_attn_attn_gate.tanh()
        close(rec["resid_pre.1"] + added, rec["resid_mid.1"])
        mlp = block.mlp(rec["mlp_in.1"]) * block.cross_attn_mlp_gate.tanh()
        close(rec["resid_mid.1"] + mlp, rec["resid_post.1"])
    for i in (0, 2, 3):
        close(rec[f"resid_pre.{i}"] + rec[f"attn_out.{i}"], rec[f"resid_mid.{i}"])
    parity.check_stream(m, inputs, block=2)
    with pytest.raises(SiteError, match="rows of an image"):
        m.sites("attn_probs.1")
    with pytest.raises(SiteError, match="a gate scales it"):
        m.sites("mlp_out.1")
    text = {"input_ids": inputs["input_ids"]}
    assert m.run(text, "resid_post.2")["resid_post.2"].shape == (2, 4, 48)
    with pytest.raises(SiteError, match=r"resid_post\.1 never ran"):
        m.run(text, "resid_post.1")


def test_gemma_3n_has_points_around_its_streams() -> None:
    config = tf.Gemma3nTextConfig(
        **{**SIZES, "intermediate_size": [36, 40, 36, 44]},
        head_dim=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=4,
        num_kv_shared_layers=2,
        laurel_rank=3,
        hidden_size_per_layer_input=7,
        vocab_size_per_layer_input=101,
        activation_sparsity_pattern=[0.5, 0.0, 0.5, 0.0],
    )
    m = Model(randomised(tf.Gemma3nForCausalLM(config)))
    rec = parity.check_sites(m, ROWS)
    parity.check_attentions(m, ROWS)
    by_hand.check_embeddings(m)
    by_hand.check_add_is_a_hook(m, ROWS, "mlp_hidden.1")
    parity.check_edits(m, ROWS[:1])
    net: Any = m.module
    for i, block in enumerate(net.model.layers):
        outputs = [f"model.layers.{i}.{p}:out" for p in ("self_attn", "mlp")]
        more = m.run(ROWS, outputs)
        with torch.no_grad():
            close(block.self_attn.o_proj(rec[f"z.{i}"].flatten(2)), more[outputs[0]])
            close(block.mlp.down_proj(rec[f"mlp_hidden.{i}"]), more[outputs[1]])
            close(block.mlp(rec[f"mlp_in.{i}"]), more[outputs[1]])
    assert m.sites("mlp_pre.3")[0].shape == ("batch", "token", 44)
    with pytest.raises(SiteError, match="4 streams on an axis before the batch"):
        m.sites("resid_post.1")
    with pytest.raises(SiteError, match="from an earlier block"):
        m.sites("k.2")
