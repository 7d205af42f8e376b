"""BERT and its like: post-norm blocks, absolute positions, MLP without a gate.

A block is LN(x + attention(x)), then LN(x + MLP(x)). The attention over an encoder's states that
a decoder may have is reached by module path, `encoder.layer.0.crossattention:out`.
"""

from typing import Any

from actkit.core.sites.architectures._reasons import POST_NORM, in_pieces
from actkit.core.sites.site import Stack, into, out

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert")


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack of blocks."""
    heads = config.num_attention_heads
    last = "crossattention" if config.add_cross_attention else "attention"
    return (
        Stack(
            blocks="encoder.layer.{}",
            num_blocks=config.num_hidden_layers,
            width=config.hidden_size,
            heads=heads,
            kv_heads=heads,
            head_width=config.hidden_size // heads,
            hidden=config.intermediate_size,
            vocabulary=config.vocab_size,
            attention="attention.self",
            alias="decoder" if config.is_decoder else "encoder",
            places={
                "embeddings": out("embeddings.word_embeddings"),
                "resid_pre": into(""),
                "attn_in": into("attention.self"),
                "q": out("attention.self.query", heads=heads),
                "k": out("attention.self.key", heads=heads),
                "v": out("attention.self.value", heads=heads),
                "z": into("attention.output.dense", heads=heads),
                "attn_out": out("attention.output.dropout"),
                "resid_mid": out(f"{last}.output"),
                "mlp_in": into("intermediate"),
                "mlp_pre": out("intermediate.dense"),
                "mlp_hidden": into("output.dense"),
                "mlp_out": out("output.dropout"),
                "resid_post": out(""),
                "logits": out("", "logits"),
            },
            lacks={"final_norm": POST_NORM}
            | in_pieces(config, "mlp_in", "mlp_pre", "mlp_hidden", "mlp_out"),
        ),
    )
