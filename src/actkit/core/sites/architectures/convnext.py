"""ConvNeXt, ConvNeXt V2 and DINOv3's ConvNeXt: stages of convolutional blocks, each twice as wide.

Each stage is a stack, `stage0.resid_post.2`. The stream is an image (B, D, Y, X); its rows are
the places, row by row, its units the channels. A block adds to the stream once, what its two maps
make of the places around each place: `mlp_in` is read after the convolution and the norm, and
`mlp_out` after the layer scale. The image is made smaller between stages.
"""

from typing import Any

from actkit.core.sites.architectures._reasons import CLASSES
from actkit.core.sites.site import POINTS, Place, Stack, into, out

MODEL_TYPES = ("convnext", "convnextv2", "dinov3_convnext")

_NAMES = {
    "convnext": ("encoder.stages", "layers", "pwconv1", "pwconv2"),
    "dinov3_convnext": ("model.stages", "layers", "pointwise_conv1", "pointwise_conv2"),
}
_CONVOLVES = "a block mixes places by a convolution and has no attention: read its {}:out"
_ONCE = "a block adds to the stream once: its middle is resid_post"
_POOLED = "the last norm runs on the places' mean: read {}:out"
_LATER = "the stage before hands on its rows: only stage0 has embeddings"


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return one stack for each stage."""
    return tuple(_stage(config, stage) for stage in range(len(config.depths)))


def _stage(config: Any, stage: int) -> Stack:
    width = config.hidden_sizes[stage]
    own = config.model_type == "dinov3_convnext"
    stages, layers, first, second = _NAMES["dinov3_convnext" if own else "convnext"]
    places = {
        "resid_pre": into("", channels_first=True),
        "mlp_in": into(first, channels_last=True),
        "mlp_pre": out(first, channels_last=True),
        "mlp_hidden": into(second, channels_last=True),
        "mlp_out": out("drop_path", channels_first=True),
        "resid_post": out("", channels_first=True),
    }
    if stage == 0:
        places["embeddings"] = _embeddings(own)
    return Stack(
        name=f"stage{stage}",
        blocks=f"{stages}.{stage}.{layers}.{{}}",
        num_blocks=config.depths[stage],
        width=width,
        hidden=4 * width,
        places=places,
        lacks={p: _reason(p, own) for p in POINTS if p not in places},
    )


def _embeddings(own: bool) -> Place:
    patches = "model.stages.0.downsample_layers.0" if own else "embeddings.patch_embeddings"
    return out(patches, channels_first=True)


def _reason(point: str, own: bool) -> str:
    """Return why the blocks have no such point."""
    reasons = {
        "embeddings": _LATER,
        "resid_mid": _ONCE,
        "mlp_gate": "the MLP of this architecture has no gate",
        "final_norm": _POOLED.format("layer_norm" if own else "layernorm"),
        "logits": CLASSES,
        **dict.fromkeys(
            ("router_logits", "router_weights", "expert_hidden"),
            "the MLP of this architecture has no experts",
        ),
    }
    return reasons.get(point, _CONVOLVES.format("depthwise_conv" if own else "dwconv"))
