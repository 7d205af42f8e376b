"""T5: encoder and decoder of pre-norm blocks with relative positions.

The decoder's attention over the encoder's states is reached by module path,
`decoder.block.0.layer.1.EncDecAttention:out.0`; `resid_mid` is the stream after both attentions.
"""

from typing import Any

from actkit.core.sites.site import Place, Stack, into, out

MODEL_TYPES = ("t5", "mt5", "umt5")


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the encoder and the decoder."""
    return _stack(config, "encoder", 1), _stack(config, "decoder", 2)


def _stack(config: Any, name: str, mlp: int) -> Stack:
    """Return one stack; its MLP is sublayer number `mlp` of a block."""
    heads, decodes = config.num_heads, name == "decoder"
    return Stack(
        name=name,
        root=name,
        blocks="block.{}",
        num_blocks=config.num_decoder_layers if decodes else config.num_layers,
        width=config.d_model,
        heads=heads,
        kv_heads=heads,
        head_width=config.d_kv,
        hidden=config.d_ff,
        vocabulary=config.vocab_size if decodes else 0,
        attention="layer.0.SelfAttention",
        places={
            "embeddings": out("embed_tokens"),
            "resid_pre": into(""),
            "attn_in": into("layer.0.SelfAttention"),
            "q": out("layer.0.SelfAttention.q", heads=heads),
            "k": out("layer.0.SelfAttention.k", heads=heads),
            "v": out("layer.0.SelfAttention.v", heads=heads),
            "z": into("layer.0.SelfAttention.o", heads=heads),
            "attn_out": out("layer.0.dropout"),
            "resid_mid": into(f"layer.{mlp}"),
            "mlp_in": into(f"layer.{mlp}.DenseReluDense"),
            **_mlp(config, f"layer.{mlp}.DenseReluDense"),
            "mlp_out": out(f"layer.{mlp}.dropout"),
            "resid_post": out(""),
            "final_norm": out("final_layer_norm"),
            **({"logits": out("", "logits")} if decodes else {}),
        },
    )


def _mlp(config: Any, path: str) -> dict[str, Place]:
    if not config.is_gated_act:
        return {"mlp_pre": out(f"{path}.wi"), "mlp_hidden": into(f"{path}.wo")}
    return {
        "mlp_gate": out(f"{path}.wi_0"),
        "mlp_pre": out(f"{path}.wi_1"),
        "mlp_hidden": into(f"{path}.wo"),
    }
