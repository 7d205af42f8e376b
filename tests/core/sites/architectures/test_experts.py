"""Routers and experts of GPT-OSS, DeepSeek, GLM, Llama 4, MiniMax and Phi, by their own weights.

The reference is a computation by hand from the parameters of the router and of the experts.
"""

from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

import actkit as ak
from actkit.core.errors import SiteError
from actkit.model import Model
from tests.core.sites.architectures import by_hand, parity
from tests.core.sites.architectures.parity import ROWS, close, randomised

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "hidden_size": 48,
    "intermediate_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
}
FUSED = {"num_local_experts": 5}
GROUPED = {
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
    "moe_intermediate_size": 20,
    "first_k_dense_replace": 1,
}
LATENT = {
    **GROUPED,
    "num_key_value_heads": 6,
    "kv_lora_rank": 14,
    "q_lora_rank": 18,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 6,
    "v_head_dim": 10,
}
NETWORKS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "gpt_oss": (tf.GptOssForCausalLM, tf.GptOssConfig, {**FUSED, "head_dim": 8}),
    "phimoe": (tf.PhimoeForCausalLM, tf.PhimoeConfig, FUSED),
    "minimax": (
        tf.MiniMaxForCausalLM,
        tf.MiniMaxConfig,
        {
            **FUSED,
            "layer_types": ["linear_attention", "full_attention", "full_attention"],
            "block_size": 4,
            "mlp_alpha_factor": 1.5,
            "head_dim": 8,
        },
    ),
    "glm4_moe": (tf.Glm4MoeForCausalLM, tf.Glm4MoeConfig, {**GROUPED, "head_dim": 8}),
    "deepseek_v2": (
        tf.DeepseekV2ForCausalLM,
        tf.DeepseekV2Config,
        {**LATENT, "topk_method": "group_limited_greedy"},
    ),
    "deepseek_v3": (tf.DeepseekV3ForCausalLM, tf.DeepseekV3Config, LATENT),
    "llama4": (
        tf.Llama4ForCausalLM,
        tf.Llama4TextConfig,
        {
            **FUSED,
            "intermediate_size_mlp": 44,
            "moe_layers": [0, 2],
            "head_dim": 8,
            "attention_chunk_size": 16,
        },
    ),
}
SPARSE = dict.fromkeys(NETWORKS, (0, 1, 2)) | {
    "glm4_moe": (1, 2),
    "deepseek_v2": (1, 2),
    "deepseek_v3": (1, 2),
    "llama4": (0, 2),
}


def network(name: str) -> Any:
    kind, config, own = NETWORKS[name]
    torch.manual_seed(0)
    module = randomised(kind(config(**{**SIZES, **own})), seed=len(name))
    for path, bias in module.named_buffers():
        if path.endswith("e_score_correction_bias"):
            bias.copy_(torch.linspace(-0.3, 0.4, len(bias)))
    return module


@pytest.fixture(params=NETWORKS)
def opened(request: pytest.FixtureRequest) -> tuple[str, Model]:
    return request.param, Model(network(request.param))


def mlp(name: str, m: Model, block: int) -> Any:
    path = "feed_forward" if name == "llama4" else "mlp"
    return m.module.get_submodule(f"model.layers.{block}.{path}")


def router(name: str, m: Model, block: int) -> Any:
    own = mlp(name, m, block)
    return own.router if hasattr(own, "router") else own.gate


def chosen(name: str, own: Any, logits_BTE: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights (B, T, E) of all experts, zero for those not chosen, by hand; and their set.

    Written from each paper's or model card's rule, one token at a time.
    """
    weights = torch.zeros_like(logits_BTE)
    for b, t in torch.cartesian_prod(*map(torch.arange, logits_BTE.shape[:2])).tolist():
        logits = logits_BTE[b, t]
        if name == "gpt_oss":
            top = logits.topk(2)
            weights[b, t, top.indices] = top.values.softmax(0)
        elif name == "minimax":
            top = logits.softmax(0).topk(2)
            weights[b, t, top.indices] = top.values / top.values.sum()
        elif name == "llama4":
            top = logits.topk(2)
            weights[b, t, top.indices] = top.values.sigmoid()
        elif name == "phimoe":
            weights[b, t] = _one_after_the_other(logits, own.router_jitter_noise)
        else:
            weights[b, t] = _in_groups(name, logits, own)
    return weights, weights > 0


def _in_groups(name: str, logits: Tensor, own: Any) -> Tensor:
    """Two groups of three experts: the better group's two best."""
    if name == "deepseek_v2":
        scores = logits.softmax(0)
        group = int(scores.view(2, 3).amax(1).argmax())
        by, share = scores, 1.0
    else:
        scores = logits.sigmoid()
        by = scores + own.e_score_correction_bias
        group = int(by.view(2, 3).topk(2).values.sum(1).argmax())
        share = 0.0
    best = by[3 * group : 3 * group + 3].topk(2).indices + 3 * group
    share = share or float(scores[best].sum())
    weights = torch.zeros_like(logits)
    weights[best] = 1.5 * scores[best] / share
    return weights


def _one_after_the_other(logits: Tensor, jitter: float) -> Tensor:
    weights = torch.zeros_like(logits)
    left = logits.clone()
    for _ in range(2):
        best = int(left.argmax())
        far = (left[best] - logits) / logits.abs().clamp(min=left[best]) > 2 * jitter
        weights[best] = left.masked_fill(far, float("-inf")).softmax(0)[best]
        left[best] = float("-inf")
    return weights


def hidden_of(name: str, experts: Any, expert: int, x: Tensor) -> Tensor:
    """Return what one expert's down projection reads of rows x, by hand."""
    if name == "gpt_oss":
        both = x @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
        gate, up = both[..., ::2].clamp(max=7.0), both[..., 1::2].clamp(-7.0, 7.0)
        clamped: Tensor = (up + 1) * gate * torch.sigmoid(1.702 * gate)
        return clamped
    weight = experts.gate_up_proj[expert]
    both = x @ weight if name == "llama4" else x @ weight.T
    gate, up = both.chunk(2, -1)
    hidden: Tensor = torch.nn.functional.silu(gate) * up
    return hidden


def output_of(name: str, experts: Any, expert: int, hidden: Tensor) -> Tensor:
    weight = experts.down_proj[expert]
    out: Tensor = hidden @ (weight if name in ("gpt_oss", "llama4") else weight.T)
    return out + experts.down_proj_bias[expert] if name == "gpt_oss" else out


@torch.no_grad()
def by_own_weights(name: str, m: Model, block: int, x: Tensor, logits: Tensor) -> Tensor:
    """Return what an MLP makes of (B, T, D) under given router logits, expert by expert."""
    own = mlp(name, m, block)
    weights, used = chosen(name, router(name, m, block), logits)
    total = torch.zeros_like(x)
    for e in range(logits.shape[-1]):
        w = weights[..., e, None]
        given = x * w if name == "llama4" else x
        y = output_of(name, own.experts, e, hidden_of(name, own.experts, e, given))
        total += (y if name == "llama4" else y * w) * used[..., e, None]
    for shared in ("shared_experts", "shared_expert"):
        if hasattr(own, shared):
            total = total + getattr(own, shared)(x)
    return total


def test_sites_states_and_sums(opened: tuple[str, Model]) -> None:
    name, m = opened
    rec = parity.check_sites(m, ROWS)
    assert m.note.startswith("points from the table of ")
    parity.check_hidden_states(m, ROWS)
    by_hand.check_embeddings(m)
    assert rec["logits"].equal(parity.reference(m.module, m, ROWS).logits)
    if name == "gpt_oss":
        _check_probs_with_sinks(m)
    elif name != "minimax":
        parity.check_attentions(m, ROWS)
    if name != "minimax":
        parity.check_sums(m, ROWS)
        parity.check_stream(m, ROWS)


def _check_probs_with_sinks(m: Model) -> None:
    """Hold that probabilities are the network's own, less the share of each softmax's sink."""
    rec = m.run(ROWS, ["attn_*.*"])
    wanted = parity.reference(parity.eager(m.module), m, ROWS, output_attentions=True).attentions
    for i, probs in enumerate(wanted):
        valid = rec.rows_of(f"attn_probs.{i}").valid
        got = rec[f"attn_probs.{i}"].transpose(1, 2)[valid]
        close(got, probs.transpose(1, 2)[valid])
        assert got.sum(-1).max() < 1
        sinks: Any = m.module.get_submodule(f"model.layers.{i}.self_attn").sinks
        scores = rec[f"attn_scores.{i}"].transpose(1, 2)[valid]
        total = scores.exp().sum(-1) + sinks.detach().exp()
        close(scores.exp() / total[..., None], got)


def test_numbers_are_those_of_the_modules_own_weights(opened: tuple[str, Model]) -> None:
    name, m = opened
    rec = m.run(ROWS, ["router_*", "expert_hidden.*", "mlp_in.*", "mlp_out.*"])
    blocks = [int(s.partition(".")[2]) for s in rec if s.startswith("router_logits")]
    assert tuple(blocks) == SPARSE[name]
    for i in blocks:
        own, gate = mlp(name, m, i), router(name, m, i)
        x = rec[f"mlp_in.{i}"]
        with torch.no_grad():
            logits = x @ gate.weight.T + (gate.bias if name == "gpt_oss" else 0)
        close(rec[f"router_logits.{i}"], logits)
        weights, _ = chosen(name, gate, logits)
        order = torch.arange(logits.shape[-1]).expand_as(logits)
        if name == "llama4":
            close(rec[f"router_weights.{i}"], weights)
        else:
            with torch.no_grad():
                order = gate(x.reshape(-1, 48))[2].view(*x.shape[:2], 2)
            close(rec[f"router_weights.{i}"], weights.gather(-1, order))
        for e in range(logits.shape[-1]):
            given = x * weights[..., e, None] if name == "llama4" else x
            with torch.no_grad():
                wanted = hidden_of(name, own.experts, e, given)
            if (order == e).any():
                close(rec[f"expert_hidden.{i}"][order == e], wanted[(order == e).any(-1)])
        close(by_own_weights(name, m, i, x, logits), rec[f"mlp_out.{i}"])


def test_edited_logits_choose_anew_by_the_routers_own_rule(opened: tuple[str, Model]) -> None:
    name, m = opened
    i = SPARSE[name][-1]
    number = 6 if name in ("glm4_moe", "deepseek_v2", "deepseek_v3") else 5
    points = [f"{p}.{i}" for p in ("mlp_in", "router_logits", "mlp_out")]
    plain = m.run(ROWS, points)
    push = torch.linspace(-1.5, 2.0, number)
    for edit in (ak.add(points[1], push), ak.scale(points[1], -1.0)):
        rec = m.run(ROWS, points, [edit])
        close(rec[points[0]], plain[points[0]])
        wanted = by_own_weights(name, m, i, rec[points[0]], rec[points[1]])
        close(rec[points[2]], wanted)
        assert (rec[points[2]] - plain[points[2]]).abs().max() > 0.01


def test_edited_weights_and_hidden_act_as_by_hand(opened: tuple[str, Model]) -> None:
    """Half of the weights or of hidden halves what experts add (in Llama 4 what they read)."""
    name, m = opened
    i = SPARSE[name][-1]
    points = [f"{p}.{i}" for p in ("mlp_in", "router_logits", "expert_hidden", "mlp_out")]
    plain = m.run(ROWS, points)
    own = mlp(name, m, i)
    shared = getattr(own, "shared_experts", getattr(own, "shared_expert", None))
    with torch.no_grad():
        beside = 0.0 if shared is None else shared(plain[points[0]])
    experts = plain[points[3]] - beside
    rec = m.run(ROWS, points, [ak.scale(f"router_weights.{i}", 0.5)])
    if name != "llama4":
        close(rec[points[3]], beside + 0.5 * experts)
    rec = m.run(ROWS, points, [ak.scale(points[2], 0.5)])
    close(rec[points[2]], 0.5 * plain[points[2]])
    biased = torch.zeros(())
    if name == "gpt_oss":
        weights, _ = chosen(name, own.router, plain[points[1]])
        biased = weights @ own.experts.down_proj_bias.detach()
    close(rec[points[3]], beside + 0.5 * experts + 0.5 * biased)
    if name == "llama4":
        keep = m.run(ROWS, points, [ak.scale(f"router_weights.{i}", 0.5)])
        weights, _ = chosen(name, own.router, plain[points[1]])
        total = torch.as_tensor(beside)
        for e in range(5):
            given = plain[points[0]] * 0.5 * weights[..., e, None]
            with torch.no_grad():
                hidden = hidden_of(name, own.experts, e, given)
                total = total + output_of(name, own.experts, e, hidden)
        close(keep[points[3]], total)


def test_edits_move_and_generate_as_hooks(opened: tuple[str, Model]) -> None:
    _, m = opened
    parity.check_edits(m, ROWS[:1])
    by_hand.check_add_is_a_hook(m, ROWS, "resid_post.1")
    batch = m.encode(ROWS)
    inputs = {k: batch.kwargs[k] for k in ("input_ids", "attention_mask")}
    by_hand.check_generation(m, inputs, "resid_post.0", steps=4)
    parity.check_cleanup(m, ROWS, "model.layers.2")


def test_rows_of_a_ragged_batch_are_those_of_single_prompts(opened: tuple[str, Model]) -> None:
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


def test_what_blocks_lack_says_why() -> None:
    reasons = {
        "glm4_moe": {"router_logits.0": "a plain MLP", "mlp_hidden.1": "read expert_hidden"},
        "deepseek_v3": {"k.1": "one latent", "q.1": "heads of 14, values of 10"},
        "llama4": {"expert_hidden.1": "a plain MLP"},
        "minimax": {"attn_probs.0": "is linear", "mlp_gate.0": "read expert_hidden"},
    }
    for name, sites in reasons.items():
        m = Model(network(name))
        for site, reason in sites.items():
            with pytest.raises(SiteError, match=reason):
                m.sites(site)
    assert Model(network("minimax")).sites("attn_probs.1")


def test_minimax_carries_on_with_what_is_normed() -> None:
    m = Model(network("minimax"))
    rec, _ = parity.whole_run(m, ROWS)
    for i in range(3):
        block: Any = m.module.get_submodule(f"model.layers.{i}")
        with torch.no_grad():
            first = block.input_layernorm(rec[f"resid_pre.{i}"])
            second = block.post_attention_layernorm(rec[f"resid_mid.{i}"])
        close(first, rec[f"attn_in.{i}"])
        close(second, rec[f"mlp_in.{i}"])
        close(first + rec[f"attn_out.{i}"], rec[f"resid_mid.{i}"])
        close(1.5 * second + rec[f"mlp_out.{i}"], rec[f"resid_post.{i}"])
    probs = parity.reference(parity.eager(m.module), m, ROWS, output_attentions=True).attentions
    valid = rec.rows_of("attn_probs.1").valid
    got = m.run(ROWS, "attn_probs.1")["attn_probs.1"]
    own = [p for p in probs if p is not None and p.shape == got.shape]
    close(got.transpose(1, 2)[valid], own[-2].transpose(1, 2)[valid])


def test_minimax_refuses_what_it_multiplies() -> None:
    _, config, own = NETWORKS["minimax"]
    scaled = config(**{**SIZES, **own, "full_attn_beta_factor": 2.0})
    m = Model(randomised(tf.MiniMaxForCausalLM(scaled)))
    with pytest.raises(SiteError, match=r"adds it 2\.0 times"):
        m.sites("attn_out.1")
    assert m.sites("attn_out.0")
