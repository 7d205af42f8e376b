"""T5Gemma: an encoder and a decoder of Gemma 2's blocks, normed before and after each sublayer.

`embeddings` are read before the factor sqrt(width), which the stack puts on. The decoder's
attention over the encoder's states is reached by module path,
`model.decoder.layers.0.cross_attn:out.0`; `resid_mid` is the stream after both attentions.
"""

from typing import Any

from actkit.core.sites.site import Place, Stack, into, out

MODEL_TYPES = ("t5gemma",)


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the encoder and the decoder."""
    return _stack(config.encoder, "encoder"), _stack(config.decoder, "decoder")


def _stack(config: Any, name: str) -> Stack:
    """Return one stack; in the decoder the MLP is the third sublayer, in the encoder the second."""
    heads, kv_heads, decodes = (
        config.num_attention_heads,
        config.num_key_value_heads,
        name[0] == "d",
    )
    return Stack(
        name=name,
        root=name,
        blocks="layers.{}",
        num_blocks=config.num_hidden_layers,
        width=config.hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        head_width=config.head_dim,
        hidden=config.intermediate_size,
        vocabulary=config.vocab_size if decodes else 0,
        attention="self_attn",
        places={
            "embeddings": out("embed_tokens"),
            "resid_pre": into(""),
            "attn_in": into("self_attn"),
            "q": out("self_attn.q_proj", heads=heads),
            "k": out("self_attn.k_proj", heads=kv_heads),
            "v": out("self_attn.v_proj", heads=kv_heads),
            "z": into("self_attn.o_proj", heads=heads),
            "attn_out": Place("dropout", "out", call=0),
            "resid_mid": into("pre_feedforward_layernorm", is_stream=True),
            "mlp_in": into("mlp"),
            "mlp_pre": out("mlp.up_proj"),
            "mlp_gate": out("mlp.gate_proj"),
            "mlp_hidden": into("mlp.down_proj"),
            "mlp_out": Place("dropout", "out", call=2 if decodes else 1),
            "resid_post": out(""),
            "final_norm": out("norm"),
            **({"logits": out("", "logits")} if decodes else {}),
        },
    )
