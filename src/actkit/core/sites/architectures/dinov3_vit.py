"""DINOv3's ViT: pre-norm blocks with layer scale and rotary positions over patches.

Row 0 is the class token, then come the registers, then the patches; only patches are rotated.
`attn_out` and `mlp_out` are read after the layer scale, where they are added to the stream.
"""

from typing import Any

from actkit.core.sites.architectures._reasons import CLASSES
from actkit.core.sites.site import Place, Stack, into, out

MODEL_TYPES = ("dinov3_vit",)


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack of blocks."""
    heads = config.num_attention_heads
    gate = {"mlp_gate": out("mlp.gate_proj")} if config.use_gated_mlp else {}
    return (
        Stack(
            blocks="model.layer.{}",
            num_blocks=config.num_hidden_layers,
            width=config.hidden_size,
            heads=heads,
            kv_heads=heads,
            head_width=config.hidden_size // heads,
            hidden=config.intermediate_size,
            attention="attention",
            alias="vision",
            places={
                "embeddings": out("embeddings.patch_embeddings", channels_first=True),
                "resid_pre": into(""),
                "attn_in": into("attention"),
                "q": out("attention.q_proj", heads=heads),
                "k": out("attention.k_proj", heads=heads),
                "v": out("attention.v_proj", heads=heads),
                "z": into("attention.o_proj", heads=heads),
                "attn_out": Place("drop_path", "out", call=0),
                "resid_mid": into("norm2", is_stream=True),
                "mlp_in": into("mlp"),
                "mlp_pre": out("mlp.up_proj"),
                **gate,
                "mlp_hidden": into("mlp.down_proj"),
                "mlp_out": Place("drop_path", "out", call=1),
                "resid_post": out(""),
                "final_norm": out("norm"),
            },
            lacks={"logits": CLASSES},
        ),
    )
