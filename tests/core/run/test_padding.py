"""A ragged batch reads like its rows alone, whatever the network can take.

Shapes: B batch, T tokens, D width.
"""

import copy
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.testing import assert_close

import actkit as ak
from actkit.core.errors import EditError, InputError
from actkit.core.run import padding
from actkit.model import Model
from tests.core import tiny
from tests.core.sites.architectures.parity import randomised
from tests.core.sweep.test_observe import Kept

WORDS = 97
ROWS = [[5, 17, 13, 88, 42, 9, 61], [7, 71, 30], [12, 90, 25, 55, 71], [33]]
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 37,
    "max_position_embeddings": 40,
}
GPT: dict[str, Any] = {"vocab_size": WORDS, "n_embd": 24, "n_layer": 2, "n_head": 3}
BART: dict[str, Any] = {
    "vocab_size": WORDS,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 37,
    "max_position_embeddings": 40,
}
T5: dict[str, Any] = {
    "vocab_size": WORDS, "d_model": 24, "d_kv": 7, "d_ff": 37, "num_layers": 2, "num_heads": 3,
}  # fmt: skip
RELATIVE: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
BUCKETS: dict[str, Any] = {**RELATIVE, "position_buckets": 8}


def rwkv() -> nn.Module:
    config = tf.RwkvConfig(
        vocab_size=WORDS, hidden_size=24, attention_hidden_size=24, intermediate_size=37,
        num_hidden_layers=2, context_length=40,
    )  # fmt: skip
    return tf.RwkvForCausalLM(config)


def mamba() -> nn.Module:
    config = tf.MambaConfig(vocab_size=WORDS, hidden_size=24, num_hidden_layers=2, state_size=5)
    return tf.MambaForCausalLM(config)


def griffin() -> nn.Module:
    config = tf.RecurrentGemmaConfig(
        **SIZES, num_key_value_heads=1, lru_width=24, attention_window_size=16,
        block_types=["recurrent", "attention"],
    )  # fmt: skip
    return tf.RecurrentGemmaForCausalLM(config)


def xlnet() -> nn.Module:
    config = tf.XLNetConfig(vocab_size=WORDS, d_model=24, n_layer=2, n_head=3, d_inner=37)
    return tf.XLNetLMHeadModel(config)


NETS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "gpt2": ("left", lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT, n_positions=40))),
    "openai-gpt": ("left", lambda: tf.OpenAIGPTLMHeadModel(tf.OpenAIGPTConfig(**GPT))),
    "llama": ("left", lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES))),
    "llama-headless": ("left", lambda: tf.LlamaModel(tf.LlamaConfig(**SIZES))),
    "bloom": ("left", lambda: tf.BloomForCausalLM(
        tf.BloomConfig(vocab_size=WORDS, hidden_size=24, n_layer=2, n_head=3))),
    "mamba": ("left", mamba),
    "xlnet": ("left", xlnet),
    "bert": ("right", lambda: tf.BertModel(tf.BertConfig(**SIZES))),
    "roberta": ("right", lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**SIZES))),
    "deberta": ("right", lambda: tf.DebertaModel(tf.DebertaConfig(**SIZES, **RELATIVE))),
    "deberta-v2": ("right", lambda: tf.DebertaV2Model(
        tf.DebertaV2Config(**SIZES, **BUCKETS))),
    "longformer": ("right", lambda: tf.LongformerModel(
        tf.LongformerConfig(**SIZES, attention_window=4))),
    "big-bird": ("right", lambda: tf.BigBirdModel(
        tf.BigBirdConfig(**SIZES, block_size=4, num_random_blocks=1))),
    "bart": ("right", lambda: tf.BartForConditionalGeneration(tf.BartConfig(**BART))),
    "bart-decoder": ("right", lambda: tf.BartForCausalLM(tf.BartConfig(**BART))),
    "t5-encoder": ("right", lambda: tf.T5EncoderModel(tf.T5Config(**T5))),
    "griffin": ("right", griffin),
    "gpt2-classifier": ("right", lambda: tf.GPT2ForSequenceClassification(
        tf.GPT2Config(**GPT, n_positions=40, pad_token_id=0))),
    "rwkv": ("alone", rwkv),
    "fnet": ("alone", lambda: tf.FNetModel(tf.FNetConfig(
        vocab_size=WORDS, hidden_size=24, num_hidden_layers=2, intermediate_size=37))),
}  # fmt: skip


def opened(name: str) -> Model:
    return Model(randomised(NETS[name][1](), std=0.2))


def recorded(m: Model) -> list[str]:
    """Return sites that a table or structure names, else what blocks and norms return."""
    named = [s.name for s in m.sites() if s.name.rpartition(".")[0].endswith("resid_post")]
    paths = [p for p, own in m.module.named_modules() if isinstance(own, nn.LayerNorm)]
    if m.name in ("LongformerModel", "XLNetLMHeadModel"):  # their inner rows are no tokens
        return [":out" if m.name == "LongformerModel" else "lm_loss:out"]
    return named or [f"{p}:out" for p in paths[:6]]


@pytest.mark.parametrize("name", NETS)
def test_a_ragged_batch_is_what_its_rows_are_alone(name: str) -> None:
    m = opened(name)
    with tiny.untouched(m.module):
        assert m.encode.padding == NETS[name][0]
    sites = recorded(m)
    assert sites
    rec = m.run(ROWS, record=sites)
    assert [t[v].tolist() for t, v in zip(rec.rows.token, rec.rows.valid, strict=True)] == ROWS
    for i, row in enumerate(ROWS):
        with torch.no_grad():
            alone = m.run({"input_ids": torch.tensor([row])}, record=sites)
        for site in sites:
            valid = rec.rows_of(site).valid[i]
            assert_close(rec[site][i][valid], alone[site][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mamba", "bart-decoder", "griffin", "rwkv"])
def test_logits_are_the_networks_own(name: str) -> None:
    m = opened(name)
    rec = m.run(ROWS, logits=True)
    for i, row in enumerate(ROWS):
        with torch.no_grad():
            want = m.module(torch.tensor([row])).logits[0]
        assert_close(rec.logits[i][rec.rows.valid[i]], want, rtol=1e-5, atol=1e-5)


def test_the_proof_can_fail() -> None:
    """Padded on the other side than the proven one, rows differ by far more than rounding."""
    for name in ("bart", "bert", "roberta", "gpt2", "griffin"):
        m = opened(name)
        site, other = recorded(m)[-1], "left" if NETS[name][0] == "right" else "right"
        kwargs = dict(m.encode._calls.arguments(ROWS, other)[1])
        kwargs.pop("position_ids", None)
        kwargs["attention_mask"] = torch.ones_like(kwargs["attention_mask"])
        wrong = m.run(kwargs, record=site)
        alone = m.run([ROWS[1]], record=site)[site][0]
        own = slice(-3, None) if other == "left" else slice(3)
        assert ((wrong[site][1, own] - alone).abs().max() > 1e-3) == (other == "left"), name


class Counting(nn.Module):
    """Adds up what came before, padding too, and takes no mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table, self.out = nn.Embedding(50, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.table(x).cumsum(1))
        return scores


class Averaging(Counting):
    """Reads both ways, padding too."""

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.table(x).mean(1))
        return scores


def test_networks_of_any_kind_are_proven() -> None:
    for net, side in ((Counting(), "right"), (Averaging(), "alone")):
        m = Model(net)
        rows = [[4, 9, 30, 7], [8, 2]]
        found = m.run(rows, record="out:out")["out:out"]
        assert m.encode.padding == side
        for i, row in enumerate(rows):
            want = net(torch.tensor([row])).detach()[0]
            got = found[i, : len(row)] if side == "right" else found[i]
            assert_close(got, want)


def test_a_network_without_a_vocabulary_runs_rows_alone() -> None:
    class Bits(nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            return input_ids.float()[..., None].flip(1)

    m = Model(Bits())
    rec = m.run([[1, 2, 3], [4, 5]], record=":out")
    assert rec[":out"][1][rec.rows.valid[1]].flatten().tolist() == [5.0, 4.0]
    assert "a proof needs 8 tokens" in m.note


def test_rows_that_end_as_a_network_needs_it_are_padded() -> None:
    """BART classifies at the token that ends a text, and refuses rows without one."""
    net = tf.BartForSequenceClassification(tf.BartConfig(**BART, eos_token_id=2))
    m = Model(randomised(net, std=0.2))
    rows = [[5, 17, 13, 88, 2], [7, 71, 2]]
    assert m.encode(rows).padding == "right" and not m.encode.note
    found = m.run(rows).output.logits
    for i, row in enumerate(rows):
        with torch.no_grad():
            want = net(torch.tensor([row])).logits[0]
        assert_close(found[i], want, rtol=1e-5, atol=1e-5)


def test_half_precision_is_proven_with_its_own_bound() -> None:
    for name, side in (("llama", "left"), ("bert", "right"), ("rwkv", "alone")):
        m = Model(randomised(NETS[name][1](), std=0.2).to(torch.bfloat16))
        assert m.encode.padding == side, name


def test_the_proof_leaves_nothing_behind() -> None:
    m = opened("big-bird")
    m.module.set_attention_type("block_sparse")  # type: ignore[operator]
    m.module.train()
    kinds = [type(own) for own in m.module.modules()]
    random = torch.get_rng_state()
    with tiny.untouched(m.module):
        assert m.encode.padding == "right"
    assert torch.equal(torch.get_rng_state(), random)
    assert [type(own) for own in m.module.modules()] == kinds
    assert m.module.attention_type == "block_sparse"  # a short text would turn it off for good


def test_buffers_of_batch_norm_stay() -> None:
    class Normed(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(5)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.out(self.norm(self.table(x).flatten(0, 1)).view(*x.shape, 5))
            return scores

    m = Model(Normed())
    before = copy.deepcopy(m.module.state_dict())
    assert m.encode.padding == "left" and m.module.training
    assert all(torch.equal(v, before[k]) for k, v in m.module.state_dict().items())


def test_rows_of_one_length_and_batches_of_the_users_need_no_proof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(padding.Proof, "verdict", never)
    m = opened("rwkv")
    m.run([[5, 6], [7, 8]], record=recorded(m))
    ids = torch.tensor([[5, 6], [7, 0]])
    taken = m.encode({"input_ids": ids, "attention_mask": torch.tensor([[1, 1], [1, 0]])})
    assert m.encode.split(taken) == [taken]


# ---- rows that run alone -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone() -> Model:
    return opened("rwkv")


SITE = "rwkv.blocks.0:out"


def by_hand(m: Model, row: list[int], change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the logits of one row with a hook written by hand on the first block."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:])

    handle = m.module.get_submodule("rwkv.blocks.0").register_forward_hook(hook)
    with torch.no_grad():
        logits: Tensor = m.module(torch.tensor([row])).logits[0]
    handle.remove()
    return logits


def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    m = opened("rwkv")
    with caplog.at_level(logging.WARNING, "actkit"):
        m.run(ROWS, record=SITE)
        m.run(ROWS, record=SITE)
    assert [r.getMessage() for r in caplog.records] == [f"RwkvForCausalLM: {m.encode.note}"]
    assert "run one by one: a short row differs on both sides" in m.note


def test_edits_mean_the_rows_of_the_batch(alone: Model) -> None:
    vector, strengths = tiny.uneven(24), torch.tensor([0.5, 0.0, -2.0, 1.5])
    values = tiny.uneven(4, 24, seed=2)
    cases: list[tuple[ak.Edit, Callable[..., Tensor]]] = [
        (ak.add(SITE, vector, 2.0), lambda x, i: x + 2 * vector),
        (ak.add(SITE, vector, strengths), lambda x, i: x + strengths[i] * vector),
        (ak.add(SITE, values), lambda x, i: x + values[i]),
        (ak.scale(SITE, strengths[:, None]), lambda x, i: x * strengths[i]),
        (ak.set(SITE, values[:2], ak.Where(rows=[3, 1])),
         lambda x, i: values[[3, 1].index(i)].expand_as(x) if i in (3, 1) else x),
        (ak.add(SITE, vector, where=ak.Where(rows=1)), lambda x, i: x + vector * (i == 1)),
        (ak.add(SITE, vector, where=ak.Where(tokens="last")),
         lambda x, i: torch.cat([x[:, :-1], x[:, -1:] + vector], 1)),
        (ak.project_out(SITE, values[:3]), lambda x, i: without(x, values[:3])),
    ]  # fmt: skip
    for edit, change in cases:
        rec = alone.run(ROWS, edits=[edit], logits=True)
        for i, row in enumerate(ROWS):
            want = by_hand(alone, row, partial(change, i=i))
            assert_close(rec.logits[i][rec.rows.valid[i]], want, rtol=1e-4, atol=1e-4)


def without(x: Tensor, directions_JD: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(directions_JD.T).Q
    return x - x @ basis @ basis.T


def test_masks_and_recordings_lie_as_the_batch_does(alone: Model) -> None:
    rec = alone.run(ROWS, record=SITE)
    mask = torch.rand(rec.rows.valid.shape, generator=torch.manual_seed(0)) < 0.5
    mask[:, -1] = True
    edited = alone.run(ROWS, record=SITE, edits=[ak.set(SITE, 3.0, ak.Where(tokens=mask))])
    meant = mask & rec.rows.valid
    assert (edited[SITE][meant] == 3).all()
    assert torch.equal(edited[SITE][~meant], rec[SITE][~meant])
    swapped = alone.run(ROWS, record=SITE, edits=[ak.swap(SITE, edited)])
    assert torch.equal(swapped[SITE], edited[SITE])


def test_an_edit_may_meet_some_rows_and_must_meet_one(alone: Model) -> None:
    far = [ak.set(SITE, 3.0, ak.Where(tokens=5))]
    rec = alone.run(ROWS, record=SITE, edits=far)
    assert ((rec[SITE] == 3).all(-1).sum(1)).tolist() == [1, 0, 0, 0]
    with pytest.raises(EditError, match="met nothing where tokens=9 in 4 rows that ran one by one"):
        alone.run(ROWS, record=SITE, edits=[ak.set(SITE, 3.0, ak.Where(tokens=9))])


def test_observe_and_harvest_run_rows_alone(alone: Model, tmp_path: Path) -> None:
    fed = alone.observe(ROWS, {SITE: [Kept()]}, batch_size=3)
    found = fed[SITE][0].result()
    store = alone.harvest(ROWS, SITE, tmp_path, batch_size=3, dtype="float32")
    want = torch.cat([alone.run([row], record=SITE)[SITE][0] for row in ROWS])
    for acts, sample, token in (
        (found["acts"], found["sample"], found["token"]),
        (store[SITE][:], store["sample"][:], store["token"][:]),
    ):
        assert_close(acts, want)
        assert sample.tolist() == [i for i, row in enumerate(ROWS) for _ in row]
        assert token.tolist() == [t for row in ROWS for t in row]


def test_what_needs_one_run_says_so(alone: Model) -> None:
    with pytest.raises(InputError, match="gradients need one run, but rows of different lengths"):
        alone.run(ROWS, record=SITE, grad=True)
    with pytest.raises(InputError, match="this takes one run, but rows of different lengths"):
        alone.stream(alone.encode(ROWS), alone.sites(SITE), lambda *_: None)
    parts = alone.encode.split(alone.encode(ROWS))
    assert [p.kwargs["input_ids"].tolist() for p in parts] == [[row] for row in ROWS]


def test_writing_behind_padding_is_no_padding() -> None:
    for name, runs in (("llama", 1), ("bart", 1), ("bart-decoder", 4), ("griffin", 4)):
        m = opened(name)
        batch = m.encode(ROWS)
        assert len(m.encode.split(batch)) == 1
        assert len(m.encode.split(batch, writes=True)) == runs, name


def test_the_real_decoder_is_padded_on_the_left(smollm2: Model) -> None:
    assert smollm2.encode.padding == "left" and not smollm2.encode.note


def test_the_real_encoder_is_padded_on_the_right(minilm: Model) -> None:
    assert minilm.encode.padding == "right"
