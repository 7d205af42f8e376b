"""Sweeps share a run only where it was seen to change no number; elsewhere versions run whole."""

from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor
from torch.testing import assert_close

import actkit as ak
from actkit.core.errors import EditError
from actkit.core.sweep.base_run import BaseRun, shares
from actkit.model import Model
from tests.core import tiny
from tests.core.sites.architectures.parity import randomised

AUTO: Any = tf.AutoModelForCausalLM
CLASSIFIER: Any = tf.LlamaForSequenceClassification
ROWS = {"even": [[5, 17, 3, 28, 9, 4], [7, 7, 30, 2, 11, 6], [12, 20, 2, 15, 8, 31]],
        "ragged": [[5, 17, 3, 28, 9, 4], [7, 7, 30], [12, 20, 2, 15]]}  # fmt: skip
SMALL: dict[str, Any] = {"vocab_size": 37, "hidden_size": 24, "num_hidden_layers": 3,
                         "num_attention_heads": 4, "pad_token_id": 0}  # fmt: skip


def built(name: str) -> Model:
    gated = {**SMALL, "intermediate_size": 40, "num_key_value_heads": 2, "head_dim": 6}
    configs: dict[str, Any] = {
        "bloom": lambda: tf.BloomConfig(vocab_size=37, hidden_size=24, n_layer=3, n_head=4,
                                        pad_token_id=0),
        "mpt": lambda: tf.MptConfig(vocab_size=37, d_model=24, n_layers=3, n_heads=4,
                                    max_seq_len=32),
        "falcon": lambda: tf.FalconConfig(**SMALL, alibi=True, new_decoder_architecture=False),
        "gemma3-prefix": lambda: tf.Gemma3TextConfig(**gated, use_bidirectional_attention=True,
                                                     sliding_window=16),
        "gemma3": lambda: tf.Gemma3TextConfig(**gated, sliding_window=16),
        "llama": lambda: tf.LlamaConfig(**gated),
        "deepseek_v32": lambda: _sparse("deepseek_v32"),
        "falcon_h1": lambda: tf.FalconH1Config(**gated, mamba_d_ssm=48, mamba_n_heads=4,
                                               mamba_d_head=12, mamba_d_state=8),
    }  # fmt: skip
    config, opener = configs[name](), AUTO
    return Model(randomised(opener.from_config(config)))


def _sparse(name: str) -> Any:
    return tf.CONFIG_MAPPING[name](
        **{**SMALL, "intermediate_size": 40, "moe_intermediate_size": 16, "n_routed_experts": 4,
           "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "kv_lora_rank": 8,
           "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 6,
           "index_topk": 2, "index_n_heads": 2, "index_head_dim": 8, "first_k_dense_replace": 1,
           "n_shared_experts": 1}
    )  # fmt: skip


def total(logits: Tensor) -> Tensor:
    weights = torch.linspace(-1, 2, logits.shape[-1])
    scale = torch.arange(1, logits.shape[1] + 1)[:, None]
    return (logits.float() * weights * scale).sum((1, 2))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", ["bloom", "mpt", "falcon", "gemma3-prefix", "gemma3", "llama",
                                  "deepseek_v32", "falcon_h1"])  # fmt: skip
def test_a_sweep_equals_each_version_alone(name: str, rows: str) -> None:
    if name not in tf.CONFIG_MAPPING and name in ("deepseek_v32", "falcon_h1"):
        pytest.skip(f"this transformers has no {name}")
    m, late = built(name), ak.Where(tokens=-2)
    if not m.sites("resid_pre.*"):
        pytest.skip("no points")
    versions = [[], [ak.scale("resid_pre.2", 0.3, late)], [ak.scale("resid_pre.1", -1.0, late)],
                [ak.scale("resid_pre.0", 0.3, ak.Where(tokens=1))],
                [ak.scale("resid_post.1", 0.5, late), ak.scale("resid_post.2", 0.5)]]  # fmt: skip
    at = slice(-3, None)
    with tiny.untouched(m.module):
        got = m.sweep(ROWS[rows], versions, total, at=at)
    alone = torch.cat([m.sweep(ROWS[rows], [v], total, at=at) for v in versions])
    assert_close(got, alone, rtol=1e-4, atol=1e-3)
    assert (got[1:] != got[:1]).any(-1).all()


def test_what_is_shared_is_proven_once() -> None:
    for name, wanted in (("llama", True), ("gemma3-prefix", False)):
        m = built(name)
        base = m.encode(ROWS["even"])
        assert shares(m, base)
        m.sweep(base, [[], [ak.scale("resid_pre.1", 0.5)]], total)
        assert set(m.shares.values()) == {wanted}, name
        assert BaseRun(m, base).whole


def test_a_classifier_has_its_labels_at_one_position() -> None:
    config = tf.LlamaConfig(**{**SMALL, "intermediate_size": 40, "num_labels": 5})
    m = Model(randomised(CLASSIFIER(config)))
    versions = [[], [ak.scale("resid_post.1", 0.5)]]
    rows = ROWS["even"]
    got = m.sweep(rows, versions, lambda x: x[:, 0, 1] - x[:, 0, 3])
    want = []
    for edits in versions:
        logits = m.run(rows, edits=edits, logits=True).logits
        assert logits.shape == (3, 5)
        want.append(logits[:, 1] - logits[:, 3])
    assert_close(got, torch.stack(want))
    with pytest.raises(EditError, match="have no positions"):
        m.sweep(rows, versions, lambda x: x[:, 0, 0], at=-2)
