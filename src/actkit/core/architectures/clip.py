"""CLIP: a text and a vision tower of the same pre-norm blocks; SigLIP's vision tower."""

from dataclasses import replace
from typing import Any

from actkit.core.architectures._reasons import CLASSES
from actkit.core.sites import Stack, into, out

MODEL_TYPES = ("clip", "clip_text_model", "clip_vision_model", "siglip_vision_model")


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the towers of a whole network, or the one tower of a part of it."""
    if config.model_type == "clip_text_model":
        return (_text(config),)
    if config.model_type != "clip":
        return (_vision(config),)
    text, vision = _text(config.text_config), _vision(config.vision_config)
    return (
        replace(text, name="text", alias="", root="text_model"),
        replace(vision, name="vision", alias="", root="vision_model"),
    )


def _text(config: Any) -> Stack:
    tower = _tower(config)
    own = {
        "embeddings": out("embeddings.token_embedding"),
        "final_norm": out("final_layer_norm"),
    }
    lacks = {"logits": "CLIP scores pairs of a text and an image (logits_per_image), not tokens"}
    return replace(tower, alias="text", places={**tower.places, **own}, lacks=lacks)


def _vision(config: Any) -> Stack:
    tower = _tower(config)
    own = {
        "embeddings": out("embeddings.patch_embedding", channels_first=True),
        "final_norm": out("post_layernorm"),
    }
    lacks = {"logits": CLASSES}
    if config.model_type == "clip_vision_model":
        lacks["final_norm"] = "it runs on the class token alone: read post_layernorm:out"
    return replace(tower, alias="vision", places={**tower.places, **own}, lacks=lacks)


def _tower(config: Any) -> Stack:
    """Return what both towers have."""
    heads = config.num_attention_heads
    return Stack(
        blocks="encoder.layers.{}",
        num_blocks=config.num_hidden_layers,
        width=config.hidden_size,
        heads=heads,
        kv_heads=heads,
        head_width=config.hidden_size // heads,
        hidden=config.intermediate_size,
        attention="self_attn",
        places={
            "resid_pre": into(""),
            "attn_in": into("self_attn"),
            "q": out("self_attn.q_proj", heads=heads),
            "k": out("self_attn.k_proj", heads=heads),
            "v": out("self_attn.v_proj", heads=heads),
            "z": into("self_attn.out_proj", heads=heads),
            "attn_out": out("self_attn.out_proj"),
            "resid_mid": into("layer_norm2", shared=True),
            "mlp_in": into("mlp"),
            "mlp_pre": out("mlp.fc1"),
            "mlp_hidden": into("mlp.fc2"),
            "mlp_out": out("mlp"),
            "resid_post": out(""),
        },
    )
