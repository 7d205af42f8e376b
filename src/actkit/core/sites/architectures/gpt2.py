"""GPT-2: pre-norm blocks, learned positions, queries, keys and values side by side in one map."""

from typing import Any

from actkit.core.sites.site import Stack, into, out

MODEL_TYPES = ("gpt2",)


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack of blocks."""
    heads, width = config.n_head, config.n_embd
    return (
        Stack(
            blocks="h.{}",
            num_blocks=config.n_layer,
            width=width,
            heads=heads,
            kv_heads=heads,
            head_width=width // heads,
            hidden=config.n_inner or 4 * width,
            vocabulary=config.vocab_size,
            attention="attn",
            places={
                "embeddings": out("wte"),
                "resid_pre": into(""),
                "attn_in": into("attn"),
                "q": out("attn.c_attn", span=(0, width), heads=heads),
                "k": out("attn.c_attn", span=(width, 2 * width), heads=heads),
                "v": out("attn.c_attn", span=(2 * width, 3 * width), heads=heads),
                "z": into("attn.c_proj", heads=heads),
                "attn_out": out("attn", 0),
                "resid_mid": into("ln_2", is_stream=True),
                "mlp_in": into("mlp"),
                "mlp_pre": out("mlp.c_fc"),
                "mlp_hidden": into("mlp.c_proj"),
                "mlp_out": out("mlp"),
                "resid_post": out(""),
                "final_norm": out("ln_f"),
                "logits": out("", "logits"),
            },
        ),
    )
