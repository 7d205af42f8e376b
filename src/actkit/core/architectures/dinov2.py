"""DINOv2: pre-norm blocks with layer scale over patches, a class token and register tokens.

Row 0 is the class token, then come the registers, then the patches. `attn_out` and `mlp_out` are
read after the layer scale, where they are added to the stream.
"""

from typing import Any

from actkit.core.architectures._reasons import CLASSES
from actkit.core.sites import Place, Stack, into, out

MODEL_TYPES = ("dinov2", "dinov2_with_registers")


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack of blocks."""
    heads = config.num_attention_heads
    hidden = int(config.hidden_size * config.mlp_ratio)
    if config.use_swiglu_ffn:
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    return (
        Stack(
            blocks="encoder.layer.{}",
            num_blocks=config.num_hidden_layers,
            width=config.hidden_size,
            heads=heads,
            kv_heads=heads,
            head_width=config.hidden_size // heads,
            hidden=hidden,
            attention="attention",
            alias="vision",
            places={
                "embeddings": out("embeddings.patch_embeddings"),
                "resid_pre": into(""),
                "attn_in": into("attention"),
                "q": out("attention.q_proj", heads=heads),
                "k": out("attention.k_proj", heads=heads),
                "v": out("attention.v_proj", heads=heads),
                "z": into("attention.o_proj", heads=heads),
                "attn_out": Place("drop_path", "out", call=0),
                "resid_mid": into("norm2", shared=True),
                "mlp_in": into("mlp"),
                **_mlp(config),
                "mlp_out": Place("drop_path", "out", call=1),
                "resid_post": out(""),
                "final_norm": out("layernorm"),
            },
            lacks={"logits": CLASSES},
        ),
    )


def _mlp(config: Any) -> dict[str, Place]:
    if not config.use_swiglu_ffn:
        return {"mlp_pre": out("mlp.fc1"), "mlp_hidden": into("mlp.fc2")}
    return {
        "mlp_pre": out("mlp.up_proj"),
        "mlp_gate": out("mlp.gate_proj"),
        "mlp_hidden": into("mlp.down_proj"),
    }
