"""BART and its kin: encoder and decoder, post-norm (BART, Marian) or pre-norm (mBART, NLLB).

In a post-norm block `resid_mid` and `resid_post` are the stream after the norm that follows each
sum, as in BERT. The decoder's attention over the encoder's states is reached by module path,
`model.decoder.layers.0.encoder_attn:out.0`; `resid_mid` is the stream after both attentions.
`embeddings` are what the module returns: of the kinds whose stack scales them inline (MVP, Pegasus,
Marian, BlenderbotSmall) before that factor, of the others after it.
"""

from dataclasses import replace
from typing import Any

from actkit.core.sites.architectures._reasons import POST_NORM
from actkit.core.sites.site import Place, Stack, into, out

_ENDS_IN_NORM = ("bart", "mvp", "plbart", "marian", "blenderbot-small")
_FINAL_NORM = {
    "mbart": "layer_norm",
    "pegasus": "layer_norm",
    "m2m_100": "layer_norm",
    "blenderbot": "layer_norm",
    "bigbird_pegasus": "layernorm_embedding",
}
MODEL_TYPES = (*_ENDS_IN_NORM, *_FINAL_NORM)

_NO_KERNEL = "MVP's attention calls no kernel that can be stood in for: read self_attn:out.1"
_SPARSE = "the encoder's attention is another module for short inputs than for long ones"


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return encoder and decoder; of a decoder alone the one stack, which needs no prefix."""
    if not config.is_encoder_decoder:
        return (replace(_stack(config, "decoder"), name="", alias="decoder"),)
    return _stack(config, "encoder"), _stack(config, "decoder")


def _stack(config: Any, name: str) -> Stack:
    """Return one stack; both name their modules alike."""
    heads, decodes = getattr(config, f"{name}_attention_heads"), name == "decoder"
    lacks = _lacks(config, decodes)
    words = getattr(config, "decoder_vocab_size", None) or config.vocab_size
    places = {
        "embeddings": out("embed_tokens"),
        "resid_pre": into(""),
        "attn_in": into("self_attn"),
        "q": out("self_attn.q_proj", heads=heads),
        "k": out("self_attn.k_proj", heads=heads),
        "v": out("self_attn.v_proj", heads=heads),
        "z": into("self_attn.out_proj", heads=heads),
        "attn_out": out("self_attn.out_proj"),
        # the first map of a post-norm block reads the stream itself
        "resid_mid": into(_after_attention(config), is_stream=True),
        "mlp_in": into("fc1"),
        "mlp_pre": out("fc1"),
        "mlp_hidden": into("fc2"),
        "mlp_out": out("fc2"),
        "resid_post": out(""),
        "final_norm": out(_FINAL_NORM.get(config.model_type, "")),
        "logits": out("", "logits"),
    }
    if config.model_type == "bigbird_pegasus" and not decodes:
        places |= _bigbird(heads)
    return Stack(
        name=name,
        root=name,
        blocks="layers.{}",
        num_blocks=getattr(config, f"{name}_layers"),
        width=config.d_model,
        heads=heads,
        kv_heads=heads,
        head_width=config.d_model // heads,
        hidden=getattr(config, f"{name}_ffn_dim"),
        vocabulary=words if decodes else 0,
        attention="" if "attn_probs" in lacks else "self_attn",
        places={p: place for p, place in places.items() if p not in lacks},
        lacks=lacks,
    )


def _after_attention(config: Any) -> str:
    return "fc1" if config.model_type in _ENDS_IN_NORM else "final_layer_norm"


def _lacks(config: Any, decodes: bool) -> dict[str, str]:
    lacks = {}
    if config.model_type in _ENDS_IN_NORM:
        lacks["final_norm"] = POST_NORM
    if config.model_type == "mvp":
        lacks |= dict.fromkeys(("attn_scores", "attn_probs"), _NO_KERNEL)
    if config.model_type == "bigbird_pegasus" and not decodes:
        lacks |= dict.fromkeys(("attn_scores", "attn_probs"), _SPARSE)
    if not decodes:
        lacks["logits"] = "the encoder has no output head that returns logits"
    return lacks


def _bigbird(heads: int) -> dict[str, Place]:
    """Return where the encoder of BigBird-Pegasus names its modules as BigBird does."""
    return {
        "q": out("self_attn.self.query", heads=heads),
        "k": out("self_attn.self.key", heads=heads),
        "v": out("self_attn.self.value", heads=heads),
        "z": into("self_attn.output", heads=heads),
        "attn_out": out("self_attn.output"),
    }
