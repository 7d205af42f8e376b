"""Llama and its like: pre-norm blocks, rotary grouped-query attention, gated MLP."""

from typing import Any

from actkit.core.sites.site import Stack, into, out

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack of blocks."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return (
        Stack(
            blocks="layers.{}",
            num_blocks=config.num_hidden_layers,
            width=config.hidden_size,
            heads=heads,
            kv_heads=kv_heads,
            head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
            hidden=config.intermediate_size,
            vocabulary=config.vocab_size,
            attention="self_attn",
            places={
                "embeddings": out("embed_tokens"),
                "resid_pre": into(""),
                "attn_in": into("self_attn"),
                "q": out("self_attn.q_proj", heads=heads),
                "k": out("self_attn.k_proj", heads=kv_heads),
                "v": out("self_attn.v_proj", heads=kv_heads),
                "z": into("self_attn.o_proj", heads=heads),
                "attn_out": out("self_attn.o_proj"),
                "resid_mid": into("post_attention_layernorm", is_stream=True),
                "mlp_in": into("mlp"),
                "mlp_pre": out("mlp.up_proj"),
                "mlp_gate": out("mlp.gate_proj"),
                "mlp_hidden": into("mlp.down_proj"),
                "mlp_out": out("mlp"),
                "resid_post": out(""),
                "final_norm": out("norm"),
                "logits": out("", "logits"),
            },
        ),
    )
