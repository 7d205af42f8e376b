"""DistilBERT: BERT's post-norm blocks under other names."""

from typing import Any

from actkit.core.sites.architectures._reasons import POST_NORM, in_pieces
from actkit.core.sites.site import Stack, into, out

MODEL_TYPES = ("distilbert",)


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack of blocks."""
    heads = config.n_heads
    return (
        Stack(
            blocks="transformer.layer.{}",
            num_blocks=config.n_layers,
            width=config.dim,
            heads=heads,
            kv_heads=heads,
            head_width=config.dim // heads,
            hidden=config.hidden_dim,
            vocabulary=config.vocab_size,
            attention="attention",
            alias="encoder",
            places={
                "embeddings": out("embeddings.word_embeddings"),
                "resid_pre": into(""),
                "attn_in": into("attention"),
                "q": out("attention.q_lin", heads=heads),
                "k": out("attention.k_lin", heads=heads),
                "v": out("attention.v_lin", heads=heads),
                "z": into("attention.out_lin", heads=heads),
                "attn_out": out("attention.out_lin"),
                "resid_mid": out("sa_layer_norm"),
                "mlp_in": into("ffn"),
                "mlp_pre": out("ffn.lin1"),
                "mlp_hidden": into("ffn.lin2"),
                "mlp_out": out("ffn"),
                "resid_post": out(""),
                "logits": out("", "logits"),
            },
            lacks={"final_norm": POST_NORM} | in_pieces(config, "mlp_pre", "mlp_hidden"),
        ),
    )
