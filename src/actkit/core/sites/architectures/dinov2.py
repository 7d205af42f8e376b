"""DINOv2: pre-norm blocks with layer scale over patches, a class token and register tokens.

Row 0 is the class token, then come the registers, then the patches. `attn_out` and `mlp_out` are
read after the layer scale, where they are added to the stream.
"""

from typing import Any

from actkit.core.compat import declares
from actkit.core.sites.architectures._reasons import CLASSES
from actkit.core.sites.site import Place, Stack, into, out

MODEL_TYPES = ("dinov2", "dinov2_with_registers")


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack of blocks."""
    heads = config.num_attention_heads
    hidden = int(config.hidden_size * config.mlp_ratio)
    if config.use_swiglu_ffn:
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    maps = _maps(config)
    return (
        Stack(
            blocks="encoder.layer.{}",
            num_blocks=config.num_hidden_layers,
            width=config.hidden_size,
            heads=heads,
            kv_heads=heads,
            head_width=config.hidden_size // heads,
            hidden=hidden,
            attention=maps.pop("attention"),
            alias="vision",
            places={
                "embeddings": out("embeddings.patch_embeddings"),
                "resid_pre": into(""),
                "attn_in": into("attention"),
                **{point: out(maps[point], heads=heads) for point in "qkv"},
                "z": into(maps["z"], heads=heads),
                "attn_out": Place("drop_path", "out", call=0),
                "resid_mid": into("norm2", is_stream=True),
                "mlp_in": into("mlp"),
                **_mlp(config, hidden),
                "mlp_out": Place("drop_path", "out", call=1),
                "resid_post": out(""),
                "final_norm": out("layernorm"),
            },
            lacks={"logits": CLASSES},
        ),
    )


def _older(config: Any) -> bool:
    """Say whether the installed transformers still nests the attention in one of its own."""
    kind = "Dinov2" if config.model_type == "dinov2" else "Dinov2WithRegisters"
    return declares(f"{config.model_type}.modeling_{config.model_type}", f"{kind}SelfAttention")


def _maps(config: Any) -> dict[str, str]:
    """Return where the attention and its four maps are."""
    if not _older(config):
        paths = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "z": "o_proj"}
        return {"attention": "attention", **{p: f"attention.{x}" for p, x in paths.items()}}
    inner = "attention.attention"
    paths = {"q": "query", "k": "key", "v": "value"}
    maps = {p: f"{inner}.{x}" for p, x in paths.items()}
    return {"attention": inner, **maps, "z": "attention.output.dense"}


def _mlp(config: Any, hidden: int) -> dict[str, Place]:
    if not config.use_swiglu_ffn:
        return {"mlp_pre": out("mlp.fc1"), "mlp_hidden": into("mlp.fc2")}
    if _older(config):
        return {
            "mlp_gate": out("mlp.weights_in", span=(0, hidden)),
            "mlp_pre": out("mlp.weights_in", span=(hidden, 2 * hidden)),
            "mlp_hidden": into("mlp.weights_out"),
        }
    return {
        "mlp_pre": out("mlp.up_proj"),
        "mlp_gate": out("mlp.gate_proj"),
        "mlp_hidden": into("mlp.down_proj"),
    }
