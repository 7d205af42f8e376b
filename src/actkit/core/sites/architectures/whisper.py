"""Whisper: an encoder of sound and a decoder of text, both of pre-norm blocks.

The decoder's attention over the encoder's states is reached by module path,
`model.decoder.layers.0.encoder_attn:out.0`; `resid_mid` is the stream after both attentions.
"""

from typing import Any

from torch import Tensor

from actkit.core.sites.site import Stack, into, out

MODEL_TYPES = ("whisper",)


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the encoder and the decoder."""
    return _stack(config, "encoder"), _stack(config, "decoder")


def _frames(encoder: Any, lengths_B: Tensor) -> Tensor:
    """Return how many rows of the encoder a spectrogram of so many columns fills."""
    frames_B: Tensor = encoder._get_feat_extract_output_lengths(lengths_B)
    return frames_B


def _stack(config: Any, name: str) -> Stack:
    """Return one stack; both name their modules alike."""
    heads, decodes = getattr(config, f"{name}_attention_heads"), name == "decoder"
    own = {"embeddings": out("embed_tokens"), "logits": out("", "logits")} if decodes else {}
    lacks = {"embeddings": "the convolutions end inline: read encoder.conv2:out before its GELU"}
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
        vocabulary=config.vocab_size if decodes else 0,
        attention="self_attn",
        frames=None if decodes else _frames,
        lacks={} if decodes else lacks,
        places={
            "resid_pre": into(""),
            "attn_in": into("self_attn"),
            "q": out("self_attn.q_proj", heads=heads),
            "k": out("self_attn.k_proj", heads=heads),
            "v": out("self_attn.v_proj", heads=heads),
            "z": into("self_attn.out_proj", heads=heads),
            "attn_out": out("self_attn.out_proj"),
            "resid_mid": into("final_layer_norm", is_stream=True),
            "mlp_in": into("fc1"),
            "mlp_pre": out("fc1"),
            "mlp_hidden": into("fc2"),
            "mlp_out": out("fc2"),
            "resid_post": out(""),
            "final_norm": out("layer_norm"),
            **own,
        },
    )
