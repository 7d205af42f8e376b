"""Moonshine: an encoder of sound and a decoder of text with rotary positions and a gated MLP.

The decoder's attention over the encoder's states is reached by module path,
`model.decoder.layers.0.encoder_attn:out.0`; `resid_mid` is the stream after both attentions.
"""

from typing import Any

from torch import Tensor

from actkit.core.sites.site import Place, Stack, into, out

MODEL_TYPES = ("moonshine",)

_INLINE = "the convolutions end inline: read encoder.conv3:out before its GELU"
_STRIDE = 64 * 3 * 2
"""Samples of sound to one row of the encoder: the strides of its three convolutions."""


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the encoder and the decoder."""
    return _stack(config, "encoder"), _stack(config, "decoder")


def _frames(_: Any, lengths_B: Tensor) -> Tensor:
    """Return how many rows so many samples fill, by the mask that the encoder itself thins out."""
    return (lengths_B + _STRIDE - 1) // _STRIDE


def _stack(config: Any, name: str) -> Stack:
    heads = getattr(config, f"{name}_num_attention_heads")
    kv_heads, decodes = getattr(config, f"{name}_num_key_value_heads"), name == "decoder"
    hidden = config.intermediate_size
    return Stack(
        name=name,
        root=name,
        blocks="layers.{}",
        num_blocks=getattr(config, f"{name}_num_hidden_layers"),
        width=config.hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        hidden=hidden,
        vocabulary=config.vocab_size if decodes else 0,
        attention="self_attn",
        frames=None if decodes else _frames,
        lacks={} if decodes else {"embeddings": _INLINE},
        places={
            "resid_pre": into(""),
            "attn_in": into("self_attn"),
            "q": out("self_attn.q_proj", heads=heads),
            "k": out("self_attn.k_proj", heads=kv_heads),
            "v": out("self_attn.v_proj", heads=kv_heads),
            "z": into("self_attn.o_proj", heads=heads),
            "attn_out": out("self_attn.o_proj"),
            "mlp_in": into("mlp"),
            "mlp_hidden": into("mlp.fc2"),
            "mlp_out": out("mlp"),
            "resid_post": out(""),
            **(_decoder(hidden) if decodes else _encoder()),
        },
    )


def _encoder() -> dict[str, Place]:
    return {
        "resid_mid": into("post_attention_layernorm", is_stream=True),
        "mlp_pre": out("mlp.fc1"),
        "final_norm": out("layer_norm"),
    }


def _decoder(hidden: int) -> dict[str, Place]:
    """Return what the decoder alone has; its up and gate map lie side by side in one map."""
    return {
        "embeddings": out("embed_tokens"),
        "resid_mid": into("final_layernorm", is_stream=True),
        "mlp_pre": out("mlp.fc1", span=(0, hidden)),
        "mlp_gate": out("mlp.fc1", span=(hidden, 2 * hidden)),
        "final_norm": out("norm"),
        "logits": out("", "logits"),
    }
