"""Decoders that no table speaks for: what structure finds is right, and the rest is refused."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from transformers.models.stablelm import modeling_stablelm

import actkit as ak
from actkit.core.errors import SiteError
from actkit.core.sites import discover as networks
from actkit.model import Model
from tests.core.sites.architectures import parity
from tests.core.sites.architectures.parity import ROWS, close, randomised
from tests.core.sites.architectures.test_decoders import GATED, NETWORKS, PLAIN, TOKENS, network
from tests.core.tiny import Wrapper, untouched

NARROW = {**TOKENS, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 64}
SUMS = {"attn_out", "mlp_out", "resid_mid"}
SCORES = {"attn_scores", "attn_probs"}
HEADS = {"q", "k", "v"}
GATE = {"mlp_gate"}
EXPERTS = {"router_logits", "router_weights", "expert_hidden"}
INSIDE = {"mlp_pre", "mlp_hidden", *GATE}


def scores_apart(kind: Any) -> set[str]:
    """Return SCORES if this class computes attention without the registry: GPT-J until 5.23."""
    asks_registry = hasattr(sys.modules[kind.__module__], "eager_attention_forward")
    return set() if asks_registry else SCORES


UNKNOWN: dict[str, tuple[Any, Any, dict[str, Any], set[str]]] = {
    "stablelm": (tf.StableLmForCausalLM, tf.StableLmConfig, GATED, set()),
    "stablelm-parallel": (
        tf.StableLmForCausalLM,
        tf.StableLmConfig,
        {**GATED, "use_parallel_residual": True},
        {"resid_mid"},
    ),
    "granite": (
        tf.GraniteForCausalLM,
        tf.GraniteConfig,
        {**GATED, "residual_multiplier": 0.9, "attention_multiplier": 0.2},
        SUMS,
    ),
    "gemma": (tf.GemmaForCausalLM, tf.GemmaConfig, {**GATED, "head_dim": 10}, set()),
    "olmo3": (tf.Olmo3ForCausalLM, tf.Olmo3Config, GATED, set()),
    "olmoe": (
        tf.OlmoeForCausalLM,
        tf.OlmoeConfig,
        {**GATED, "num_experts": 5, "num_experts_per_tok": 2},
        INSIDE,
    ),
    "glm4": (tf.Glm4ForCausalLM, tf.Glm4Config, {**GATED, "head_dim": 8}, {"mlp_pre", *GATE}),
    "cohere": (tf.CohereForCausalLM, tf.CohereConfig, GATED, {"resid_mid"}),
    "persimmon": (
        tf.PersimmonForCausalLM,
        tf.PersimmonConfig,
        {**PLAIN, "intermediate_size": 80},
        {*HEADS, *GATE},
    ),
    "falcon": (
        tf.FalconForCausalLM,
        tf.FalconConfig,
        {**TOKENS, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6},
        {"resid_mid", *HEADS, *SCORES, *GATE},
    ),
    "gpt-j": (
        tf.GPTJForCausalLM,
        tf.GPTJConfig,
        {**NARROW, "rotary_dim": 4},
        {"resid_mid", *scores_apart(tf.GPTJForCausalLM), *GATE},
    ),
    "bloom": (
        tf.BloomForCausalLM,
        tf.BloomConfig,
        {**TOKENS, "hidden_size": 48, "n_layer": 3, "n_head": 6},
        {*SUMS, *HEADS, "z", *SCORES, *INSIDE},
    ),
}
"""Networks of transformers without a table, and what each lacks besides experts."""


def opened(name: str) -> Model:
    kind, config, settings, _ = UNKNOWN[name]
    torch.manual_seed(0)
    return Model(randomised(kind(config(**settings)), seed=len(name)))


def had(m: Model) -> set[str]:
    return {s.name.partition(".")[0] for s in m.sites()}


def lacked(m: Model) -> set[str]:
    return {s.name.partition(".")[0] for s in m.sites(refused=True) if s.refused}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_found_holds_and_the_rest_is_refused(name: str) -> None:
    m = opened(name)
    assert m.note.startswith("found by structure: 3 blocks of ")
    assert lacked(m) == UNKNOWN[name][3] | EXPERTS
    parity.check_sites(m, ROWS)
    parity.check_hidden_states(m, ROWS)
    parity.check_edits(m, ROWS)
    parity.check_moves(m, ROWS)
    parity.check_padding(m)
    if "attn_out" in had(m):
        parity.check_sums(m, ROWS, mid="resid_mid" in had(m))
    if "resid_mid" in had(m):
        parity.check_stream(m, ROWS)
    if "attn_probs" in had(m):
        parity.check_attentions(m, ROWS)


def test_a_scaled_residual_is_refused_with_the_reason() -> None:
    with pytest.raises(SiteError, match=r"no attn_out.1: by structure: .* did not add up"):
        opened("granite").run(ROWS, "attn_out.1")


def test_attention_sinks_are_part_of_the_explicit_form() -> None:
    settings: dict[str, Any] = {**GATED, "head_dim": 8, "sliding_window": 4}
    config = tf.GptOssConfig(
        **settings,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )
    m = Model(randomised(tf.GptOssForCausalLM(config)))
    assert had(m) >= SCORES | SUMS
    twin = parity.eager(m.module)
    wanted = parity.reference(twin, m, ROWS[:1], output_attentions=True).attentions
    rec = m.run(ROWS[:1], "attn_probs.*")
    for i, probs in enumerate(wanted):
        close(rec[f"attn_probs.{i}"], probs)
        assert probs.sum(-1).max() < 0.999  # the sinks take their share
    parity.check_edits(m, ROWS)


def test_attention_by_another_formula_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original = modeling_stablelm.eager_attention_forward

    def sharper(module: nn.Module, query: Tensor, *rest: Any, **settings: Any) -> Any:
        return original(module, 1.01 * query, *rest, **settings)

    monkeypatch.setattr(modeling_stablelm, "eager_attention_forward", sharper)
    settings: dict[str, Any] = {**GATED, "attn_implementation": "eager"}
    m = Model(randomised(tf.StableLmForCausalLM(tf.StableLmConfig(**settings))))
    assert lacked(m) == SCORES | EXPERTS
    monkeypatch.undo()
    assert lacked(Model(m.module)) == EXPERTS


@pytest.mark.parametrize("name", [n for n in NETWORKS if "mamba" not in n])
def test_structure_and_table_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What structure finds in a network that has a table is what the table says, bit by bit."""
    module = network(name)
    table = Model(module)
    monkeypatch.setattr(networks, "tables", dict)
    found = Model(module)
    assert found.note.startswith("found by structure")
    names = [s.name for s in found.sites()]
    assert len(names) >= 4 * 3
    rec, wanted = found.run(ROWS, names), table.run(ROWS, names)
    for site in names:
        assert rec[site].equal(wanted[site]), site
        assert found.sites(site)[0].shape == table.sites(site)[0].shape


def test_structure_finds_most_of_what_tables_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "tables", dict)
    assert lacked(Model(network("llama"))) == EXPERTS
    assert lacked(Model(network("gemma2"))) == EXPERTS
    assert lacked(Model(network("olmo2"))) == EXPERTS
    assert lacked(Model(network("gpt2"))) == {*HEADS, *GATE, *EXPERTS}
    assert lacked(Model(network("pythia"))) == {"resid_mid", *HEADS, *GATE, *EXPERTS}
    assert lacked(Model(network("opt-350m"))) >= {*SUMS, "final_norm"}


class Attention(nn.Module):
    """Causal attention with a fused map, as in small teaching networks."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.n_head = heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.n_head, -1)).transpose(1, 2)
            for t in self.c_attn(x).chunk(3, dim=-1)
        )
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.as_tensor(self.c_proj(z.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """A gated MLP whose maps' names do not tell which is the gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(width, 20), nn.Linear(20, width), nn.Linear(width, 20)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.w2(nn.functional.silu(self.w3(x)) * self.w1(x)))


Step = Callable[["Block", Tensor], Tensor]


class Block(nn.Module):
    """A block that joins its parts as it is told."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(12), Attention(12, 3)
        self.ln_2, self.ff = nn.LayerNorm(12), FeedForward(12)
        self.drop, self._step = nn.Dropout(0.5), step

    def forward(self, x: Tensor) -> Tensor:
        return self._step(self, x)


class Decoder(nn.Module):
    """A decoder written by hand: blocks in a ModuleDict, logits and a loss in a tuple."""

    def __init__(self, step: Step, std: float = 0.4) -> None:
        super().__init__()
        blocks = nn.ModuleList([Block(step) for _ in range(3)])
        self.parts = nn.ModuleDict(
            {"wte": nn.Embedding(31, 12), "wpe": nn.Embedding(9, 12), "h": blocks}
        )
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 31)
        randomised(self, std=std)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.parts["wte"](ids) + self.parts["wpe"](torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)), targets

    @property
    def blocks(self) -> Any:
        return self.parts["h"]


def serial(block: Block, x: Tensor) -> Tensor:
    x = x + block.drop(block.attn(block.ln_1(x)))
    return torch.as_tensor(x + block.drop(block.ff(block.ln_2(x))))


def in_place(block: Block, x: Tensor) -> Tensor:
    x += block.attn(block.ln_1(x))
    x += block.ff(block.ln_2(x))
    return x


def scaled(block: Block, x: Tensor) -> Tensor:
    x = x + 0.99 * block.attn(block.ln_1(x))
    return torch.as_tensor(x + block.ff(block.ln_2(x)))


def post_norm(block: Block, x: Tensor) -> Tensor:
    x = block.ln_1(x + block.attn(x))
    return torch.as_tensor(block.ln_2(x + block.ff(x)))


def copied(block: Block, x: Tensor) -> Tensor:
    x = x + block.attn(block.ln_1(x))
    return torch.as_tensor(x + block.ff(block.ln_2(x.clone())))


IDS = torch.tensor([[3, 30, 7, 7, 1], [12, 5, 29, 2, 17]])


@pytest.mark.parametrize("step", [serial, in_place])
def test_a_decoder_written_by_hand(step: Step) -> None:
    module = Decoder(step)
    with untouched(module):
        m = Model(module)
    assert m.note.startswith("found by structure: 3 blocks of Block at parts.h with embeddings, ")
    assert lacked(m) == {*HEADS, *SCORES, *EXPERTS}
    rec = m.run((IDS,), [s.name for s in m.sites()])
    with torch.no_grad():
        wanted, _ = module(IDS)
        x = module.parts["wte"](IDS) + module.parts["wpe"](torch.arange(5))
        for i, block in enumerate(module.blocks):
            assert rec[f"resid_pre.{i}"].equal(x)
            attn = block.attn(block.ln_1(x))
            assert rec[f"attn_out.{i}"].equal(attn) and rec[f"resid_mid.{i}"].equal(x + attn)
            close(block.attn.c_proj(rec[f"z.{i}"].flatten(2)), attn)
            h = block.ln_2(x + attn)
            assert rec[f"mlp_in.{i}"].equal(h)
            assert rec[f"mlp_gate.{i}"].equal(block.ff.w3(h))
            assert rec[f"mlp_pre.{i}"].equal(block.ff.w1(h))
            assert rec[f"mlp_out.{i}"].equal(block.ff(h))
            x = x + attn + block.ff(h)
            close(rec[f"resid_post.{i}"], x)
            x = rec[f"resid_post.{i}"]
    assert rec["logits"].equal(wanted) and rec["embeddings"].equal(module.parts["wte"](IDS))
    assert rec.rows_of("resid_post.0").token.equal(IDS)
    vector = torch.linspace(-1.0, 2.0, 12)
    mid, attn = (
        m.run((IDS,), "resid_post.1", [ak.add(f"{p}.1", vector)])["resid_post.1"]
        for p in ("resid_mid", "attn_out")
    )
    close(mid, attn)
    assert (mid - rec["resid_post.1"]).abs().max() > 0.1


def test_near_misses_are_refused() -> None:
    """A factor of 0.99, a norm after the sum, a part that adds nothing, a copy of the stream."""
    assert lacked(Model(Decoder(scaled))) >= SUMS
    assert lacked(Model(Decoder(post_norm))) >= SUMS
    silent = Decoder(serial)
    for block in silent.blocks:
        nn.init.zeros_(block.ff.w2.weight)
        nn.init.zeros_(block.ff.w2.bias)
    assert lacked(Model(silent)) >= SUMS
    m = Model(Decoder(copied))
    # the copy holds the right numbers, but an edit there would not move the stream
    assert "resid_mid" in lacked(m) and had(m) >= {"attn_out", "mlp_out"}


def test_training_mode_and_random_state_stay() -> None:
    module = Decoder(serial).train()
    module.norm.eval()
    before = torch.random.get_rng_state()
    with untouched(module):
        m = Model(module)
    assert torch.random.get_rng_state().equal(before)
    assert had(m) >= SUMS  # checked without the dropout that training puts in between
    assert had(Model(Decoder(serial).bfloat16())) == had(m)


class Refusing(Decoder):
    """Takes tokens only to fail."""

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        super().forward(ids, targets)
        raise RuntimeError("not today\nsecond line")


class Transposed(Decoder):
    """Keeps its tokens on the first axis."""

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return super().forward(ids.mT.contiguous(), targets)


def test_what_cannot_be_checked_is_left_to_module_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Refusing(serial)
    with untouched(module):
        m = Model(module)
    assert m.note.startswith("no table for this network")
    assert m.note.endswith("found no points by structure: not today")
    assert m.sites("parts.h.0.attn:out")
    many = nn.ModuleList([nn.Linear(3, 3), nn.ReLU()])
    assert Model(many).note == networks.Network.note
    monkeypatch.setattr(networks, "tables", dict)
    bart: dict[str, Any] = {"vocab_size": 31, "d_model": 48, "decoder_layers": 2}
    assert Model(tf.BartModel(tf.BartConfig(**bart))).note == networks.Network.note  # two stacks


def test_inside_a_wrapper() -> None:
    inner = opened("stablelm")
    m = Model(Wrapper(inner.module, delegate=False))
    assert "at inner.model.layers with" in m.note
    batch = {"input_ids": torch.tensor(ROWS[:1])}
    for site in ("resid_mid.1", "attn_probs.2", "embeddings", "logits"):
        assert m.run(batch, site)[site].equal(inner.run(batch, site)[site])


def test_of_several_stacks_the_language_model_is_looked_at() -> None:
    """The vision tower has more blocks."""
    tower: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 5, "num_attention_heads": 3}
    config = tf.Gemma3Config(
        text_config={**GATED, "head_dim": 8},
        vision_config={**tower, "intermediate_size": 40, "image_size": 16, "patch_size": 4},
        mm_tokens_per_image=4,
        image_token_index=99,
    )
    m = Model(randomised(tf.Gemma3ForConditionalGeneration(config)))
    assert "3 blocks of Gemma3DecoderLayer at model.language_model.layers" in m.note
    assert lacked(m) == EXPERTS
    parity.check_sites(m, ROWS[:1])
    parity.check_sums(m, ROWS[:1])


def test_tokens_first_is_no_stream() -> None:
    m = Model(Transposed(serial))
    assert "no (batch, token, width) stream" in m.note
