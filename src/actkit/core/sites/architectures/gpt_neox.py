"""GPT-NeoX and Pythia: attention and MLP side by side, q, k and v interleaved head by head."""

from typing import Any

from actkit.core.sites.architectures._reasons import PARALLEL
from actkit.core.sites.site import Stack, into, out

MODEL_TYPES = ("gpt_neox",)


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack of blocks."""
    heads, width = config.num_attention_heads, config.hidden_size
    fused = "attention.query_key_value"
    parallel = config.use_parallel_residual
    mid = {} if parallel else {"resid_mid": into("post_attention_layernorm", is_stream=True)}
    return (
        Stack(
            blocks="layers.{}",
            num_blocks=config.num_hidden_layers,
            width=width,
            heads=heads,
            kv_heads=heads,
            head_width=width // heads,
            hidden=config.intermediate_size,
            vocabulary=config.vocab_size,
            attention="attention",
            places={
                "embeddings": out("embed_in"),
                "resid_pre": into(""),
                "attn_in": into("attention"),
                "q": out(fused, heads=heads, slot=(0, 3)),
                "k": out(fused, heads=heads, slot=(1, 3)),
                "v": out(fused, heads=heads, slot=(2, 3)),
                "z": into("attention.dense", heads=heads),
                "attn_out": out("post_attention_dropout"),
                **mid,
                "mlp_in": into("mlp"),
                "mlp_pre": out("mlp.dense_h_to_4h"),
                "mlp_hidden": into("mlp.dense_4h_to_h"),
                "mlp_out": out("post_mlp_dropout"),
                "resid_post": out(""),
                "final_norm": out("final_layer_norm"),
                "logits": out("", "logits"),
            },
            lacks={"resid_mid": PARALLEL} if parallel else {},
        ),
    )
