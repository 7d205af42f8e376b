"""CLIP and SigLIP: a text and a vision tower of the same pre-norm blocks.

SigLIP 2 reads images of any shape as padded rows of patches; its vision stack is the module that
is handed the mask over them, so patch embedding and last norm are reached by module path.
"""

from dataclasses import replace
from typing import Any

from actkit.core.sites.architectures._reasons import CLASSES
from actkit.core.sites.site import Stack, into, out

_WHOLE = ("clip", "siglip", "siglip2")
_TEXT = ("clip_text_model", "siglip_text_model", "siglip2_text_model")
_VISION = ("clip_vision_model", "siglip_vision_model", "siglip2_vision_model")
MODEL_TYPES = (*_WHOLE, *_TEXT, *_VISION)

_PAIRS = "{} scores pairs of a text and an image (logits_per_image), not tokens"
_AROUND = "the stack is the encoder, which knows the patches' mask: read {}:out"


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the towers of a whole network, or the one tower of a part of it."""
    if config.model_type in _TEXT:
        return (_text(config),)
    if config.model_type in _VISION:
        return (_vision(config),)
    text, vision = _text(config.text_config), _vision(config.vision_config)
    root = ".".join(filter(None, ("vision_model", vision.root)))
    return (
        replace(text, name="text", alias="", root="text_model"),
        replace(vision, name="vision", alias="", root=root),
    )


def _text(config: Any) -> Stack:
    tower = _tower(config)
    own = {
        "embeddings": out("embeddings.token_embedding"),
        "final_norm": out("final_layer_norm"),
    }
    name = "CLIP" if config.model_type == "clip_text_model" else "SigLIP"
    lacks = {"logits": _PAIRS.format(name)}
    return replace(tower, alias="text", places={**tower.places, **own}, lacks=lacks)


def _vision(config: Any) -> Stack:
    tower = _tower(config)
    if config.model_type == "siglip2_vision_model":
        return _masked(tower)
    own = {
        "embeddings": out("embeddings.patch_embedding", channels_first=True),
        "final_norm": out("post_layernorm"),
    }
    lacks = {"logits": CLASSES}
    if config.model_type == "clip_vision_model":
        lacks["final_norm"] = "it runs on the class token alone: read post_layernorm:out"
    return replace(tower, alias="vision", places={**tower.places, **own}, lacks=lacks)


def _masked(tower: Stack) -> Stack:
    """Return the tower whose root is the encoder, which is handed the mask over patches."""
    lacks = {
        "embeddings": _AROUND.format("embeddings.patch_embedding"),
        "final_norm": _AROUND.format("post_layernorm"),
        "logits": CLASSES,
    }
    return replace(tower, root="encoder", blocks="layers.{}", alias="vision", lacks=lacks)


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
            "resid_mid": into("layer_norm2", is_stream=True),
            "mlp_in": into("mlp"),
            "mlp_pre": out("mlp.fc1"),
            "mlp_hidden": into("mlp.fc2"),
            "mlp_out": out("mlp"),
            "resid_post": out(""),
        },
    )
