"""OPT: blocks that lay batch and tokens on one axis for the MLP; pre-norm, OPT-350m post-norm.

In a post-norm block `resid_mid` and `resid_post` are the stream after the norm that follows each
sum, as in BERT.
"""

from typing import Any

from actkit.core.sites.architectures._reasons import POST_NORM
from actkit.core.sites.site import Stack, into, out

MODEL_TYPES = ("opt",)


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack of blocks."""
    heads, width = config.num_attention_heads, config.hidden_size
    pre_norm = config.do_layer_norm_before
    lacks = {} if pre_norm else {"final_norm": POST_NORM}
    if pre_norm and config._remove_final_layer_norm:
        lacks["final_norm"] = "this checkpoint is configured without a final norm"
    mid = into("final_layer_norm", is_stream=True, flat=True)
    places = {
        "embeddings": out("embed_tokens"),
        "resid_pre": into(""),
        "attn_in": into("self_attn"),
        "q": out("self_attn.q_proj", heads=heads),
        "k": out("self_attn.k_proj", heads=heads),
        "v": out("self_attn.v_proj", heads=heads),
        "z": into("self_attn.out_proj", heads=heads),
        "attn_out": out("self_attn", 0),
        "resid_mid": mid if pre_norm else out("self_attn_layer_norm"),
        "mlp_in": into("fc1", flat=True),
        "mlp_pre": out("fc1", flat=True),
        "mlp_hidden": into("fc2", flat=True),
        "mlp_out": out("fc2", flat=True),
        "resid_post": out(""),
        "final_norm": out("final_layer_norm"),
        "logits": out("", "logits"),
    }
    return (
        Stack(
            root="decoder",
            blocks="layers.{}",
            num_blocks=config.num_hidden_layers,
            width=width,
            heads=heads,
            kv_heads=heads,
            head_width=width // heads,
            hidden=config.ffn_dim,
            vocabulary=config.vocab_size,
            embedding_width=config.word_embed_proj_dim,
            attention="self_attn",
            places={k: v for k, v in places.items() if k not in lacks},
            lacks=lacks,
        ),
    )
