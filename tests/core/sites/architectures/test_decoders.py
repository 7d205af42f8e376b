"""Decoders with a table, on three tiny blocks each; sizes are uneven so that no axis can pose."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import EditError, SiteError
from actkit.model import Model
from tests.core.sites.architectures import parity
from tests.core.sites.architectures.parity import ROWS, close, points, randomised
from tests.core.tiny import untouched

WIDTH, HEADS, KV_HEADS, BLOCKS, HIDDEN, WORDS = 48, 6, 2, 3, 80, 101
TOKENS: dict[str, Any] = {
    "vocab_size": WORDS,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
PLAIN: dict[str, Any] = {
    **TOKENS,
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
}
GATED: dict[str, Any] = {**PLAIN, "intermediate_size": HIDDEN, "num_key_value_heads": KV_HEADS}
WIDE = {**GATED, "head_dim": 10}
GPT2 = {**TOKENS, "n_embd": WIDTH, "n_layer": BLOCKS, "n_head": HEADS, "n_positions": 64}
MOE = {**GATED, "num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 6.0}

NETWORKS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (tf.LlamaForCausalLM, tf.LlamaConfig, {**GATED, "attention_bias": True}),
    "mistral": (tf.MistralForCausalLM, tf.MistralConfig, {**WIDE, "sliding_window": 4}),
    "qwen2": (tf.Qwen2ForCausalLM, tf.Qwen2Config, GATED),
    "qwen3": (tf.Qwen3ForCausalLM, tf.Qwen3Config, WIDE),
    "smollm3": (tf.SmolLM3ForCausalLM, tf.SmolLM3Config, {**GATED, "no_rope_layer_interval": 2}),
    "gpt2": (tf.GPT2LMHeadModel, tf.GPT2Config, {**GPT2, "n_inner": HIDDEN}),
    "gpt2-upcast": (
        tf.GPT2LMHeadModel,
        tf.GPT2Config,
        {
            **GPT2,
            "reorder_and_upcast_attn": True,
            "scale_attn_by_inverse_layer_idx": True,
            "attn_implementation": "eager",
        },
    ),
    "pythia": (tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig, {**PLAIN, "intermediate_size": HIDDEN}),
    "neox-serial": (
        tf.GPTNeoXForCausalLM,
        tf.GPTNeoXConfig,
        {**PLAIN, "intermediate_size": HIDDEN, "use_parallel_residual": False},
    ),
    "opt": (
        tf.OPTForCausalLM,
        tf.OPTConfig,
        {**PLAIN, "ffn_dim": HIDDEN, "word_embed_proj_dim": WIDTH},
    ),
    "opt-350m": (
        tf.OPTForCausalLM,
        tf.OPTConfig,
        {**PLAIN, "ffn_dim": HIDDEN, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    ),
    "gemma2": (
        tf.Gemma2ForCausalLM,
        tf.Gemma2Config,
        {
            **WIDE,
            **CAPS,
            "query_pre_attn_scalar": 7,
            "sliding_window": 4,
            "attn_implementation": "eager",  # sdpa leaves the caps out, and older versions let it
        },
    ),
    "gemma3": (tf.Gemma3ForCausalLM, tf.Gemma3TextConfig, {**WIDE, "sliding_window": 4}),
    "phi3": (tf.Phi3ForCausalLM, tf.Phi3Config, GATED),
    "olmo2": (tf.Olmo2ForCausalLM, tf.Olmo2Config, GATED),
    "mixtral": (
        tf.MixtralForCausalLM,
        tf.MixtralConfig,
        {**GATED, "num_local_experts": 5, "num_experts_per_tok": 2},
    ),
    "qwen2-moe": (
        tf.Qwen2MoeForCausalLM,
        tf.Qwen2MoeConfig,
        {**MOE, "shared_expert_intermediate_size": 28, "mlp_only_layers": [1]},
    ),
    "qwen3-moe": (
        tf.Qwen3MoeForCausalLM,
        tf.Qwen3MoeConfig,
        {**MOE, "norm_topk_prob": True, "decoder_sparse_step": 2},
    ),
    "mamba": (
        tf.MambaForCausalLM,
        tf.MambaConfig,
        {**TOKENS, "hidden_size": WIDTH, "state_size": 5, "num_hidden_layers": BLOCKS},
    ),
    "mamba2": (
        tf.Mamba2ForCausalLM,
        tf.Mamba2Config,
        {
            **TOKENS,
            "hidden_size": WIDTH,
            "num_hidden_layers": BLOCKS,
            "state_size": 5,
            "num_heads": 6,
            "head_dim": 16,
            "n_groups": 2,
        },
    ),
    "falcon-mamba": (
        tf.FalconMambaForCausalLM,
        tf.FalconMambaConfig,
        {**TOKENS, "hidden_size": WIDTH, "state_size": 5, "num_hidden_layers": BLOCKS},
    ),
}
MAMBAS = ("mamba", "mamba2", "falcon-mamba")
ATTENTIVE = [n for n in NETWORKS if n not in MAMBAS]
PARALLEL = ("pythia",)
POST_NORM = ("opt-350m",)
SERIAL = [n for n in ATTENTIVE if n not in (*PARALLEL, *POST_NORM)]
EXPERTS = ("mixtral", "qwen2-moe", "qwen3-moe")
SPARSE = {"mixtral": (0, 1, 2), "qwen2-moe": (0, 2), "qwen3-moe": (1,)}


def network(name: str, attention: str | None = None) -> Any:
    kind, config, settings = NETWORKS[name]
    given = {"attn_implementation": attention} if attention else {}
    torch.manual_seed(0)
    return randomised(kind(config(**settings, **given)), seed=len(name))


def opened(name: str) -> Model:
    return Model(network(name))


def modules(m: Model, path: str) -> list[nn.Module]:
    """Return a module of each block, by its path below the block."""
    place = m.sites("resid_post.0")[0].place.path
    return [m.module.get_submodule(f"{place[:-1]}{i}.{path}") for i in range(BLOCKS)]


def path_of(m: Model, path: str, block: int, side: str = "out") -> str:
    return f"{m.sites('resid_post.0')[0].place.path[:-1]}{block}.{path}:{side}"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_site_fires_and_no_bit_changes(name: str) -> None:
    m = opened(name)
    rec = parity.check_sites(m, ROWS)
    assert m.note.startswith("points from the table of ")
    assert rec["logits"].equal(parity.reference(m.module, m, ROWS).logits)
    logits = m.run(ROWS, logits=True).logits
    assert rec["logits"].equal(logits)


@pytest.mark.parametrize("name", ["llama", "gpt2-upcast", "gemma2", "mixtral", "mamba"])
def test_no_bit_changes_in_half_precision(name: str) -> None:
    """GPT-2's own kernel and float32 routers and scans differ from the rest there."""
    parity.check_sites(Model(network(name).bfloat16()), ROWS)


@pytest.mark.parametrize("name", [n for n in ATTENTIVE if n not in POST_NORM])
def test_hidden_states(name: str) -> None:
    parity.check_hidden_states(opened(name), ROWS)


def test_hidden_states_of_opt_350m() -> None:
    m = opened("opt-350m")
    rec, _ = parity.whole_run(m, ROWS)
    states = parity.reference(m.module, m, ROWS, output_hidden_states=True).hidden_states
    for i in range(BLOCKS):
        close(rec[f"resid_pre.{i}"], states[i])
    # the last one is projected to the embeddings' width
    out_DE = m.module.get_submodule("model.decoder.project_out")
    close(out_DE(rec["resid_post.2"]), states[-1])
    assert rec["embeddings"].shape == (3, 7, 32)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_attention_is_what_the_network_says(name: str) -> None:
    m = opened(name)
    parity.check_attentions(m, ROWS)
    assert {s.shape[1] for s in m.sites("attn_probs.*") if s.shape} == {HEADS}


@pytest.mark.parametrize("name", ATTENTIVE)
def test_queries_and_keys_make_the_scores(name: str) -> None:
    m = opened(name)
    rec = m.run([[5, 17, 3]], record=["q.*", "k.*", "v.*", "z.*", "attn_*.*"])
    for i, attention in enumerate(modules(m, m.sites("attn_scores.1")[0].place.path[_cut(m) :])):
        q_HK, k_GK = rec[f"q.{i}"][0, 0], rec[f"k.{i}"][0, 0]
        q_HK, k_GK = normed(attention, "q_norm", q_HK), normed(attention, "k_norm", k_GK)
        k_HK = k_GK.repeat_interleave(len(q_HK) // len(k_GK), 0)
        logits_H = (q_HK * k_HK).sum(-1) * scaling(attention, q_HK)
        if (cap := getattr(attention, "attn_logit_softcapping", None)) is not None:
            logits_H = cap * torch.tanh(logits_H / cap)
        # the first token is not rotated, so its score is the plain product
        close(logits_H, rec[f"attn_scores.{i}"][0, :, 0, 0])
        v_THK = rec[f"v.{i}"][0].repeat_interleave(len(q_HK) // len(k_GK), 1)
        close(torch.einsum("hts,shk->thk", rec[f"attn_probs.{i}"][0], v_THK), rec[f"z.{i}"][0])


def _cut(m: Model) -> int:
    return len(m.sites("resid_post.1")[0].place.path) + 1


def normed(attention: Any, name: str, x_HK: Tensor) -> Tensor:
    """Apply the norm of queries or keys, if there is one, over each head or over all of them."""
    norm = getattr(attention, name, None)
    if norm is None:
        return x_HK
    with torch.no_grad():
        over_all = norm.weight.numel() == x_HK.numel()
        return torch.as_tensor(norm(x_HK.reshape(-1) if over_all else x_HK)).view_as(x_HK)


def scaling(attention: Any, q_HK: Tensor) -> float:
    if isinstance(attention, nn.Module) and type(attention).__name__ == "OPTAttention":
        return float(q_HK.shape[-1] ** -0.5)  # OPT scales queries after their projection
    return float(attention.scaling)


@pytest.mark.parametrize("name", [n for n in ATTENTIVE if n not in POST_NORM])
def test_sums(name: str) -> None:
    parity.check_sums(opened(name), ROWS, mid=name not in PARALLEL)


def test_sums_of_a_post_norm_block() -> None:
    m = opened("opt-350m")
    rec, _ = parity.whole_run(m, ROWS)
    for i in range(BLOCKS):
        first, second = (modules(m, n)[i] for n in ("self_attn_layer_norm", "final_layer_norm"))
        with torch.no_grad():
            close(first(rec[f"resid_pre.{i}"] + rec[f"attn_out.{i}"]), rec[f"resid_mid.{i}"])
            total = rec[f"resid_mid.{i}"] + rec[f"mlp_out.{i}"]
            close(second(total), rec[f"resid_post.{i}"])


OUTPUTS = {
    "gpt2": ("attn.c_proj", "mlp.c_proj", "mlp.act"),
    "gpt2-upcast": ("attn.c_proj", "mlp.c_proj", "mlp.act"),
    "pythia": ("attention.dense", "mlp.dense_4h_to_h", "mlp.act"),
    "neox-serial": ("attention.dense", "mlp.dense_4h_to_h", "mlp.act"),
    "opt": ("self_attn.out_proj", "fc2", "activation_fn"),
    "opt-350m": ("self_attn.out_proj", "fc2", "activation_fn"),
    "phi3": ("self_attn.o_proj", "mlp.down_proj", "mlp.activation_fn"),
}
"""Paths of the output projections and the nonlinearity; the rest are named as in Llama."""


@pytest.mark.parametrize("name", ATTENTIVE)
def test_heads_give_the_attention_s_output(name: str) -> None:
    m = opened(name)
    path = OUTPUTS.get(name, ("self_attn.o_proj",))[0]
    rec = m.run(ROWS, record=["z.*", *(path_of(m, path, i) for i in range(BLOCKS)), "attn_out.*"])
    for i, project in enumerate(modules(m, path)):
        with torch.no_grad():
            raw = project(rec[f"z.{i}"].flatten(2))
        close(raw, rec[path_of(m, path, i)])
        if name in ("gemma2", "gemma3", "olmo2"):
            with torch.no_grad():
                raw = modules(m, "post_attention_layernorm")[i](raw)
        close(raw, rec[f"attn_out.{i}"])


@pytest.mark.parametrize("name", ATTENTIVE)
def test_mlp_from_inside_out(name: str) -> None:
    m = opened(name)
    if name in EXPERTS:
        down, act = "mlp.down_proj", "mlp.act_fn"
    else:
        _, down, act = OUTPUTS.get(name, ("", "mlp.down_proj", "mlp.act_fn"))
    rec, _ = parity.whole_run(m, ROWS)
    for site in points(m, "mlp_hidden"):
        i = int(site.split(".")[1])
        base = path_of(m, "", i)[: -len(".:out")]
        project, nonlinear = (m.module.get_submodule(f"{base}.{p}") for p in (down, act))
        with torch.no_grad():
            hidden = nonlinear(rec.get(f"mlp_gate.{i}", rec[f"mlp_pre.{i}"]))
            hidden = hidden * rec[f"mlp_pre.{i}"] if f"mlp_gate.{i}" in rec else hidden
            close(hidden, rec[site])
            out = project(rec[site])
            if name in ("gemma2", "gemma3", "olmo2"):
                out = m.module.get_submodule(f"{base}.post_feedforward_layernorm")(out)
        close(out, rec[f"mlp_out.{i}"])


@pytest.mark.parametrize("name", ATTENTIVE)
def test_projections_read_attn_in_and_mlp_in(name: str) -> None:
    m = opened(name)
    rec, _ = parity.whole_run(m, ROWS)
    for point, source in (("q", "attn_in"), ("v", "attn_in"), ("mlp_pre", "mlp_in")):
        for site in points(m, point):
            i = site.split(".")[1]
            path = m.sites(site)[0].place.path
            with torch.no_grad():
                whole = m.module.get_submodule(path)(rec[f"{source}.{i}"])
            # whichever part of the map is the point, its numbers are among what the map returns
            part = rec[site].flatten(2)[..., :, None]
            assert (part - whole[..., None, :]).abs().amin(-1).max() < 1e-4


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_add_up_to_the_mlp(name: str) -> None:
    m = opened(name)
    gates = [path_of(m, "mlp.gate", i) + ".2" for i in SPARSE[name]]
    rec = m.run(ROWS, record=["router_*", "expert_hidden.*", "mlp_in.*", "mlp_out.*", *gates])
    assert [s for s in rec if s.startswith("router_logits")] == [
        f"router_logits.{i}" for i in SPARSE[name]
    ]
    for i, gate in zip(SPARSE[name], gates, strict=True):
        mlp: Any = modules(m, "mlp")[i]
        x_BTD, weights_BTC = rec[f"mlp_in.{i}"], rec[f"router_weights.{i}"]
        chosen_BTC = rec[gate].view_as(weights_BTC)
        logits_BTE = x_BTD @ mlp.gate.weight.mT
        close(rec[f"router_logits.{i}"], logits_BTE)
        top = logits_BTE.softmax(-1).gather(-1, chosen_BTC)
        share = 1.0 if name == "qwen2-moe" else top.sum(-1, keepdim=True)
        close(top / share, weights_BTC)
        down_BTCDF = mlp.experts.down_proj[chosen_BTC]
        out_BTCD = torch.einsum("btcdf,btcf->btcd", down_BTCDF, rec[f"expert_hidden.{i}"])
        total = (out_BTCD * weights_BTC[..., None]).sum(-2)
        if name == "qwen2-moe":
            with torch.no_grad():
                total = total + mlp.shared_expert_gate(x_BTD).sigmoid() * mlp.shared_expert(x_BTD)
        close(total, rec[f"mlp_out.{i}"])


def test_dense_blocks_among_experts_are_described_apart() -> None:
    m = opened("qwen2-moe")
    refused = {s.name: s.refused for s in m.sites(refused=True) if s.refused}
    assert "other blocks of the network have experts" in refused["router_logits.1"]
    assert "read expert_hidden" in refused["mlp_hidden.0"]
    (dense,) = m.sites("mlp_hidden.1")
    (sparse,) = m.sites("expert_hidden.2")
    assert (dense.shape, sparse.shape) == (("batch", "token", 80), ("batch", "token", 3, 20))


@pytest.mark.parametrize("name", EXPERTS)
def test_edited_router_logits_choose_anew(name: str) -> None:
    """Two experts that are pushed up by far serve every token; a constant changes nothing."""
    m, i = opened(name), SPARSE[name][-1]
    gate = path_of(m, "mlp.gate", i) + ".2"
    plain = m.run(ROWS, record=[f"router_weights.{i}", "logits"])
    push = torch.tensor([0.0, 500.0, 0.0, 500.0, 0.0])
    pushed = m.run(
        ROWS,
        record=[gate, f"router_weights.{i}", f"router_logits.{i}", "logits"],
        edits=[ak.add(f"router_logits.{i}", push)],
    )
    assert set(pushed[gate][:, :2].flatten().tolist()) == {1, 3}
    first_BT = pushed[f"router_weights.{i}"][..., 0]
    exact_BT = pushed[f"router_logits.{i}"].softmax(-1).amax(-1)
    close(first_BT, exact_BT)
    assert (pushed["logits"] - plain["logits"]).abs().max() > 0.1
    same = m.run(ROWS, record="logits", edits=[ak.add(f"router_logits.{i}", torch.ones(5))])
    valid = same.rows.valid
    close(same["logits"][valid], plain["logits"][valid])
    both = [ak.scale(f"router_weights.{i}", 0.5), ak.add(f"router_logits.{i}", push)]
    rec = m.run(ROWS, [f"router_weights.{i}"], both)
    close(rec[f"router_weights.{i}"], 0.5 * pushed[f"router_weights.{i}"])


def test_a_router_is_edited_by_its_own_rule_or_not_at_all() -> None:
    """A rule of logits alone is kept, whichever it is; one that reads more is not guessed."""
    m = opened("mixtral")
    gate: Any = m.module.get_submodule("model.layers.1.mlp.gate")

    class Sigmoid(type(gate)):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits, _, _ = super().forward(hidden_states)
            top = logits.sigmoid().topk(self.top_k, dim=-1)
            return logits, top.values, top.indices

    class ByNorm(type(gate)):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits, weights, chosen = super().forward(hidden_states)
            return logits, weights * hidden_states.norm(dim=-1, keepdim=True), chosen

    gate.__class__ = Sigmoid
    push = ak.add("router_logits.1", torch.linspace(-1.0, 2.0, 5))
    rec = m.run(ROWS, ["router_logits.1", "router_weights.1"], [push])
    close(rec["router_logits.1"].sigmoid().topk(2).values, rec["router_weights.1"])
    gate.__class__ = ByNorm
    m.run(ROWS, record="router_logits.1")
    with pytest.raises(EditError, match="only where the logits alone choose"):
        m.run(ROWS, edits=[push])


@pytest.mark.parametrize("name", NETWORKS)
def test_edits(name: str) -> None:
    m = opened(name)
    parity.check_edits(m, ROWS)
    parity.check_moves(m, ROWS)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "gpt2-upcast"])
def test_gradients_are_what_small_edits_do(name: str) -> None:
    module = network(name).double()
    if name in EXPERTS:
        module.set_experts_implementation("eager")  # the default takes no float64
    parity.check_gradients(Model(module), ROWS[:1], step=1e-6 if "opt" in name else 1e-3)


@pytest.mark.parametrize("name", SERIAL)
def test_the_middle_of_the_stream_is_edited_in_the_stream(name: str) -> None:
    parity.check_stream(opened(name), ROWS)


def test_an_edit_at_mlp_in_stays_out_of_the_stream() -> None:
    """OLMo 2's MLP reads the stream itself; only an edit at resid_mid may move the stream."""
    m, vector = opened("olmo2"), torch.linspace(-1.0, 2.0, WIDTH)
    record = ["resid_mid.1", "mlp_in.1", "mlp_out.1", "resid_post.1"]
    inner = m.run(ROWS, record, [ak.add("mlp_in.1", vector)])
    close(inner["resid_mid.1"] + inner["mlp_out.1"], inner["resid_post.1"])
    close(inner["mlp_in.1"], inner["resid_mid.1"] + vector)
    both = [ak.add("mlp_in.1", vector), ak.scale("resid_mid.1", 0.5)]
    rec = m.run(ROWS, record, both)
    close(rec["resid_mid.1"], 0.5 * inner["resid_mid.1"])
    close(rec["mlp_in.1"], rec["resid_mid.1"] + vector)
    close(rec["resid_mid.1"] + rec["mlp_out.1"], rec["resid_post.1"])


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_changes_no_row(name: str) -> None:
    parity.check_padding(opened(name))


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "olmo2", "opt", "mixtral", "mamba"])
def test_errors_leave_nothing_behind(name: str) -> None:
    m = opened(name)
    parity.check_cleanup(m, ROWS, m.sites("resid_post.2")[0].place.path)


@pytest.mark.parametrize("name", ["llama", "pythia", "opt", "mamba"])
def test_a_network_without_a_head(name: str) -> None:
    whole = opened(name)
    base: Any = whole.module
    m = Model(base.base_model)
    parity.check_sites(m, ROWS)
    for site in ("resid_post.1", "embeddings"):
        assert m.run(ROWS, site)[site].equal(whole.run(ROWS, site)[site])
    with pytest.raises(SiteError, match="no output head"):
        m.run(ROWS, "logits")


def test_refusals_say_why() -> None:
    reasons = {
        "pythia": ("resid_mid.0", "side by side"),
        "opt-350m": ("final_norm", "already normalised"),
        "gpt2": ("mlp_gate.0", "no gate"),
        "mamba": ("attn_probs.0", "no attention"),
        "mamba2": ("mlp_hidden.2", "no MLP"),
        "falcon-mamba": ("resid_mid.1", "adds to the stream once"),
        "llama": ("router_logits.0", "no experts"),
    }
    for name, (site, reason) in reasons.items():
        with pytest.raises(SiteError, match=f"this network has no {site}.*{reason}"):
            opened(name).run(ROWS, site)


@pytest.mark.parametrize("name", MAMBAS)
def test_mamba_streams(name: str) -> None:
    m = opened(name)
    rec, output = parity.whole_run(m, ROWS)
    mixers = [path_of(m, "mixer", i) for i in range(BLOCKS)]
    added = m.run(ROWS, record=mixers)
    states = parity.reference(m.module, m, ROWS, output_hidden_states=True).hidden_states
    close(rec["embeddings"], rec["resid_pre.0"])
    for i in range(BLOCKS):
        close(rec[f"resid_pre.{i}"] + added[mixers[i]], rec[f"resid_post.{i}"])
        close(rec[f"resid_post.{i}"], states[i])
    close(rec["final_norm"], states[-1])
    close(rec["logits"], output.logits)


Edits = Callable[[Tensor | None], list[Any]]


def check_generation(m: Model, edits: Edits, steps: int) -> None:
    """Hold that the network's own cached loop under edits equals whole runs without a cache.

    `edits` is called with None for the loop, and for a run with the mask of the given tokens.
    """
    batch = m.encode(ROWS)
    ids, mask = batch.kwargs["input_ids"], batch.kwargs["attention_mask"]
    with untouched(m.module), m.edited(edits(None)):
        cached = generated(m, ids, mask, steps)
    num_given = ids.shape[1]
    for step in range(steps):
        given = torch.arange(ids.shape[1]).expand_as(ids) < num_given
        kwargs = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in batch.kwargs:
            kwargs["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
        last_BV = m.run(kwargs, record="logits", edits=edits(given))["logits"][:, -1]
        close(cached.logits[step], last_BV, 1e-4)
        ids = torch.cat([ids, cached.logits[step].argmax(-1, keepdim=True)], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    assert ids.equal(cached.sequences)
    plain = generated(m, batch.kwargs["input_ids"], batch.kwargs["attention_mask"], steps)
    for got, want in zip(cached.logits[1:], plain.logits[1:], strict=True):
        assert (got - want).abs().amax(-1).min() > 0.1  # the edits move every row at every step


def generated(m: Model, ids: Tensor, mask: Tensor, steps: int) -> Any:
    network: Any = m.module
    return network.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=steps,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "phi3", "mixtral", *MAMBAS])
def test_generation_with_edits_equals_a_loop_without_a_cache(name: str) -> None:
    edits = [
        ak.add("resid_post.1", torch.linspace(-2.0, 1.0, WIDTH)),
        ak.scale("resid_pre.2", 0.7),
    ]
    check_generation(opened(name), lambda _: edits, 6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", *MAMBAS])
def test_phases_and_positions_count_on_while_generating(name: str) -> None:
    vector = torch.linspace(-2.0, 1.0, WIDTH)

    def edits(given: Tensor | None) -> list[Any]:
        some = ak.add("resid_pre.1", vector, 2.0, ak.Where(tokens=slice(2, 6)))
        if given is not None and given.all():
            return [some]
        written = ak.Where(tokens="generated" if given is None else ~given)
        return [some, ak.add("resid_post.0", vector, 3.0, written)]

    check_generation(opened(name), edits, 5)
