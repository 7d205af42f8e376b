"""ALBERT: one post-norm block that is called again and again, narrow embeddings.

With several groups of blocks, or several blocks in a group, nothing is claimed: points are then
reached by module path, `path:out#n` for the n-th call.
"""

from typing import Any

from actkit.core.sites.architectures._reasons import POST_NORM, in_pieces
from actkit.core.sites.site import Stack, into, out

MODEL_TYPES = ("albert",)


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack of blocks, none where several blocks are shared."""
    if config.num_hidden_groups != 1 or config.inner_group_num != 1:
        return ()
    heads = config.num_attention_heads
    return (
        Stack(
            blocks="encoder.albert_layer_groups.0.albert_layers.0",
            num_blocks=config.num_hidden_layers,
            shared_blocks=True,
            width=config.hidden_size,
            embedding_width=config.embedding_size,
            heads=heads,
            kv_heads=heads,
            head_width=config.hidden_size // heads,
            hidden=config.intermediate_size,
            vocabulary=config.vocab_size,
            attention="attention",
            alias="encoder",
            places={
                "embeddings": out("embeddings.word_embeddings"),
                "resid_pre": into(""),
                "attn_in": into("attention"),
                "q": out("attention.query", heads=heads),
                "k": out("attention.key", heads=heads),
                "v": out("attention.value", heads=heads),
                "z": into("attention.dense", heads=heads),
                "attn_out": out("attention.output_dropout"),
                "resid_mid": out("attention.LayerNorm"),
                "mlp_in": into("ffn"),
                "mlp_pre": out("ffn"),
                "mlp_hidden": into("ffn_output"),
                "mlp_out": out("ffn_output"),
                "resid_post": out(""),
                "logits": out("", "logits"),
            },
            lacks={"final_norm": POST_NORM}
            | in_pieces(config, "mlp_in", "mlp_pre", "mlp_hidden", "mlp_out"),
        ),
    )
