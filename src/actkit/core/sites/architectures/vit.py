"""ViT, DeiT and AST: pre-norm blocks over patches and a class token, which is row 0.

In DeiT and AST row 1 is the distillation token. AST's patches are of a spectrogram.
"""

from typing import Any

from actkit.core.sites.architectures._reasons import CLASSES
from actkit.core.sites.site import Place, Stack, into, out

MODEL_TYPES = ("vit", "deit", "audio-spectrogram-transformer")


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack of blocks."""
    heads = config.num_attention_heads
    return (
        Stack(
            blocks="layers.{}",
            num_blocks=config.num_hidden_layers,
            width=config.hidden_size,
            heads=heads,
            kv_heads=heads,
            head_width=config.hidden_size // heads,
            hidden=config.intermediate_size,
            attention="attention",
            alias="vision" if config.model_type != "audio-spectrogram-transformer" else "audio",
            places={
                "embeddings": out("embeddings.patch_embeddings"),
                "resid_pre": into(""),
                "attn_in": into("attention"),
                "q": out("attention.q_proj", heads=heads),
                "k": out("attention.k_proj", heads=heads),
                "v": out("attention.v_proj", heads=heads),
                "z": into("attention.o_proj", heads=heads),
                "attn_out": Place("dropout", "out", call=0),
                "resid_mid": into("layernorm_after", is_stream=True),
                "mlp_in": into("mlp"),
                "mlp_pre": out("mlp.fc1"),
                "mlp_hidden": into("mlp.fc2"),
                "mlp_out": Place("dropout", "out", call=1),
                "resid_post": out(""),
                "final_norm": out("layernorm"),
            },
            lacks={"logits": CLASSES},
        ),
    )
