"""Sound and translation: WavLM and wav2vec 2.0's other kin, AST, Moonshine, T5Gemma."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import SiteError
from actkit.model import Model
from tests.core import tiny
from tests.core.sites.architectures import by_hand, parity
from tests.core.sites.architectures.parity import close, randomised

SOUND: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "vocab_size": 33,
    "intermediate_size": 37,
    "conv_dim": (8, 10),
    "conv_kernel": (5, 3),
    "conv_stride": (3, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 2,
}
STABLE: dict[str, Any] = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
WAVES = {
    "input_values": tiny.uneven(2, 60),
    "attention_mask": torch.tensor([[1] * 60, [1] * 31 + [0] * 29]),
}
WAVES["input_values"][1, 31:] = 0.0

KIN: dict[str, Callable[[], nn.Module]] = {
    "wavlm": lambda: tf.WavLMForCTC(tf.WavLMConfig(**SOUND)),
    "wavlm-stable": lambda: tf.WavLMModel(tf.WavLMConfig(**SOUND, **STABLE)),
    "unispeech": lambda: tf.UniSpeechModel(tf.UniSpeechConfig(**SOUND)),
    "unispeech-sat": lambda: tf.UniSpeechSatForCTC(tf.UniSpeechSatConfig(**SOUND, **STABLE)),
    "data2vec-audio": lambda: tf.Data2VecAudioModel(tf.Data2VecAudioConfig(**SOUND)),
}


@pytest.fixture(params=KIN)
def kin(request: pytest.FixtureRequest) -> tuple[str, Model]:
    return request.param, Model(randomised(KIN[request.param]()))


MASKS = "ignore:Support for mismatched key_padding_mask:UserWarning"
"""WavLM hands torch two masks of different types, whoever calls it."""


@pytest.mark.filterwarnings(MASKS)
def test_kin_states_and_sums(kin: tuple[str, Model]) -> None:
    name, m = kin
    rec = parity.check_sites(m, WAVES)
    parity.check_hidden_states(m, WAVES, normed=False)
    if not name.startswith("wavlm"):
        parity.check_attentions(m, WAVES)
    base: Any = getattr(m.module, str(m.module.base_model_prefix), m.module)
    for i, own in enumerate(base.encoder.layers):
        pre, mid, post = (rec[f"resid_{p}.{i}"] for p in ("pre", "mid", "post"))
        attn, mlp = rec[f"attn_out.{i}"], rec[f"mlp_out.{i}"]
        with torch.no_grad():
            if f"z.{i}" in rec:
                close(own.attention.out_proj(rec[f"z.{i}"].flatten(2)), attn)
            hidden = own.feed_forward.intermediate_act_fn(rec[f"mlp_pre.{i}"])
            close(hidden, rec[f"mlp_hidden.{i}"])
            close(own.feed_forward.output_dense(hidden), mlp)
            stable = name in ("wavlm-stable", "unispeech-sat")
            close(pre + attn if stable else own.layer_norm(pre + attn), mid)
            close(mid + mlp if stable else own.final_layer_norm(mid + mlp), post)
    valid = rec.rows_of("resid_post.1").valid
    assert valid.tolist() == [[True] * 9, [True] * 4 + [False] * 5]


@pytest.mark.filterwarnings(MASKS)
def test_kin_edits(kin: tuple[str, Model]) -> None:
    name, m = kin
    parity.check_edits(m, WAVES)
    for site in ("resid_post.0", "attn_out.1", "mlp_out.1"):
        by_hand.check_add_is_a_hook(m, WAVES, site)
    parity.check_cleanup(m, WAVES, m.sites("resid_post.2")[0].place.path)
    if name.startswith("wavlm"):
        with pytest.raises(SiteError, match="one function of torch"):
            m.sites("attn_probs.1")


# -- AST -----------------------------------------------------------------------------------------


def test_ast_reads_patches_of_a_spectrogram() -> None:
    config = tf.ASTConfig(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=37,
        patch_size=4,
        frequency_stride=3,
        time_stride=3,
        max_length=13,
        num_mel_bins=10,
    )
    m = Model(randomised(tf.ASTForAudioClassification(config)))
    spectra = {"input_values": tiny.uneven(2, 13, 10)}
    rec = parity.check_sites(m, spectra)
    parity.check_hidden_states(m, spectra, normed=False)
    parity.check_attentions(m, spectra)
    parity.check_sums(m, spectra)
    parity.check_stream(m, spectra)
    parity.check_edits(m, spectra)
    by_hand.check_add_is_a_hook(m, spectra, "resid_post.1")
    base: Any = m.module.get_submodule("audio_spectrogram_transformer")
    with torch.no_grad():
        close(base.embeddings.patch_embeddings(spectra["input_values"]), rec["embeddings"])
        close(base.layernorm(rec["resid_post.2"]), rec["final_norm"])
    assert rec["resid_post.1"].shape == (2, 14, 24)
    assert m.sites("audio.z.1")[0].where == m.sites("z.1")[0].where


# -- Moonshine and T5Gemma -----------------------------------------------------------------------


def moonshine() -> nn.Module:
    config = tf.MoonshineConfig(
        vocab_size=91,
        hidden_size=24,
        intermediate_size=37,
        encoder_num_hidden_layers=3,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=3,
        decoder_num_attention_heads=4,
        max_position_embeddings=40,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return tf.MoonshineForConditionalGeneration(config)


def t5gemma() -> nn.Module:
    tokens: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sizes: dict[str, Any] = {
        **tokens,
        "vocab_size": 91,
        "hidden_size": 24,
        "intermediate_size": 37,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "sliding_window": 4,
        "query_pre_attn_scalar": 5,
        "max_position_embeddings": 40,
    }
    settings: dict[str, Any] = {
        **tokens,
        "encoder": {**sizes, "num_hidden_layers": 3},
        "decoder": {**sizes, "num_hidden_layers": 2},
        "vocab_size": 91,
        "decoder_start_token_id": 1,
    }
    net = tf.T5GemmaForConditionalGeneration(tf.T5GemmaConfig(**settings))
    # the kernel that knows caps: some versions take sdpa, and ask another for the attentions
    net.set_attn_implementation("eager")
    return net


SAMPLES = 3000
"""Samples of sound: they fill six rows of Moonshine's encoder."""
TARGETS = torch.tensor([[1, 4, 81, 9, 6], [1, 33, 12, 15, 7]])
SPEECH = {
    "input_values": tiny.uneven(2, SAMPLES),
    "attention_mask": torch.tensor([[1] * SAMPLES, [1] * 1300 + [0] * (SAMPLES - 1300)]),
}
SOURCE = {
    "input_ids": torch.tensor([[5, 17, 3, 88, 42], [7, 7, 30, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}
PAIRS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor], tuple[str, str]]] = {
    "moonshine": (moonshine, SPEECH, ("mlp", "encoder_attn")),
    "t5gemma": (t5gemma, SOURCE, ("mlp", "cross_attn")),
}


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[str, Model, dict[str, Tensor], str]:
    make, source, (_, cross) = PAIRS[request.param]
    m = Model(randomised(make()))
    return request.param, m, {**source, "decoder_input_ids": TARGETS}, cross


def test_pairs_states_attentions_and_sums(
    pair: tuple[str, Model, dict[str, Tensor], str],
) -> None:
    name, m, inputs, cross = pair
    rec = parity.check_sites(m, inputs)
    for stack in ("encoder", "decoder"):
        parity.check_hidden_states(m, inputs, stack, f"{stack}_hidden_states")
        parity.check_attentions(m, inputs, stack, f"{stack}_attentions")
    parity.check_sums(m, inputs, "encoder")
    parity.check_stream(m, inputs, stack="encoder")
    norm = "post_cross_attn_layernorm" if name == "t5gemma" else cross
    crossed = [f"model.decoder.layers.{i}.{norm}:out" for i in range(2)]
    more = m.run(inputs, crossed)
    for i in range(2):
        pre, mid, post = (rec[f"decoder.resid_{p}.{i}"] for p in ("pre", "mid", "post"))
        close(pre + rec[f"decoder.attn_out.{i}"] + more[crossed[i]], mid)
        close(mid + rec[f"decoder.mlp_out.{i}"], post)
    for stack, number in (("encoder", 3), ("decoder", 2)):
        for i in range(number):
            block: Any = m.module.get_submodule(f"model.{stack}.layers.{i}")
            gate = rec.get(f"{stack}.mlp_gate.{i}")
            up, hidden = rec[f"{stack}.mlp_pre.{i}"], rec[f"{stack}.mlp_hidden.{i}"]
            act = getattr(block.mlp, "act_fn", None) or block.mlp.activation_fn
            with torch.no_grad():
                close(act(up) if gate is None else act(gate) * up, hidden)
                raw = block.self_attn.o_proj(rec[f"{stack}.z.{i}"].flatten(2))
                raw = block.post_self_attn_layernorm(raw) if name == "t5gemma" else raw
            close(raw, rec[f"{stack}.attn_out.{i}"])
    assert rec.rows_of("decoder.z.0").token.equal(TARGETS)


def test_pairs_edits_and_generation(pair: tuple[str, Model, dict[str, Tensor], str]) -> None:
    name, m, inputs, _ = pair
    parity.check_edits(m, {k: v[:1] for k, v in inputs.items()})
    for site in ("encoder.resid_post.1", "decoder.resid_post.0"):
        by_hand.check_add_is_a_hook(m, inputs, site)
        source = {k: v for k, v in inputs.items() if k != "decoder_input_ids"}
        by_hand.check_generation(m, source, site, steps=4)
    parity.check_cleanup(m, inputs, "model.decoder.layers.1")
    # of its two tables T5Gemma names the encoder's
    by_hand.check_embeddings(m, "encoder" if name == "t5gemma" else "decoder")


def test_t5gemmas_padded_sources_read_like_single_ones() -> None:
    m = Model(randomised(t5gemma()))
    both = {**SOURCE, "decoder_input_ids": TARGETS}
    alone = [
        {"input_ids": SOURCE["input_ids"][:1], "decoder_input_ids": TARGETS[:1]},
        {"input_ids": torch.tensor([[7, 7, 30]]), "decoder_input_ids": TARGETS[1:]},
    ]
    by_hand.check_rows_alone(m, both, alone)


def test_moonshines_rows_of_silence_are_not_valid() -> None:
    """1300 samples are four strides of 384 begun, by the encoder's own thinned-out mask."""
    m = Model(randomised(moonshine()))
    inputs = {**SPEECH, "decoder_input_ids": TARGETS}
    rec = m.run(inputs, ["encoder.resid_post.1", "decoder.resid_post.1"])
    rows = rec["encoder.resid_post.1"].shape[1]
    own = SPEECH["attention_mask"][:, ::384][:, :rows].bool()
    assert rec.rows_of("encoder.resid_post.1").valid.equal(own)
    assert own[1].sum() == 4 and rec.rows_of("decoder.resid_post.1").valid.all()
    last = ak.Where(tokens="last")
    site = "encoder.resid_post.1"
    moved = m.run(inputs, site, [ak.set(site, 3.0, where=last)])[site]
    changed = (moved != rec[site]).any(-1)
    assert changed.nonzero().tolist() == [[0, rows - 1], [1, 3]]
    with pytest.raises(SiteError, match="convolutions end inline"):
        m.sites("encoder.embeddings")
