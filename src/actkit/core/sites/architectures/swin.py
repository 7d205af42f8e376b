"""Swin and Swin V2: stages of blocks over patches, each stage twice as wide as the one before.

Each stage is a stack, `stage0.resid_post.1`; between stages four patches become one. Attention
runs in windows, of which each is a row of its own batch, so its insides are reached by module
path. Swin V2 norms what attention and MLP return: `attn_out` and `mlp_out` are read after that.
"""

from typing import Any

from actkit.core.sites.architectures._reasons import CLASSES
from actkit.core.sites.site import Place, Stack, into, out

MODEL_TYPES = ("swin", "swinv2")

_WINDOWS = "attention runs in windows, each a row of its own batch: read its maps by module path"
_INSIDE = ("attn_in", "q", "k", "v", "attn_scores", "attn_probs", "z")
_LATER = "the stage before hands on its rows: only stage0 has embeddings"
_EARLIER = "the norm follows the last stage only"


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return one stack for each stage."""
    return tuple(_stage(config, stage) for stage in range(len(config.depths)))


def _stage(config: Any, stage: int) -> Stack:
    width = int(config.embed_dim * 2**stage)
    inside = _second() if config.model_type == "swinv2" else _first()
    places = {"resid_pre": into(""), **inside, "resid_post": out("")}
    lacks = {**dict.fromkeys(_INSIDE, _WINDOWS), "logits": CLASSES}
    if stage == 0:
        places["embeddings"] = out("embeddings.patch_embeddings")
    else:
        lacks["embeddings"] = _LATER
    if stage == len(config.depths) - 1:
        places["final_norm"] = out("layernorm")
    else:
        lacks["final_norm"] = _EARLIER
    return Stack(
        name=f"stage{stage}",
        blocks=f"encoder.layers.{stage}.blocks.{{}}",
        num_blocks=config.depths[stage],
        width=width,
        hidden=int(config.mlp_ratio * width),
        places=places,
        lacks=lacks,
    )


def _first() -> dict[str, Place]:
    """Return the points inside a block of Swin, which norms what attention and MLP read."""
    return {
        "attn_out": out("drop_path"),
        "resid_mid": into("layernorm_after", is_stream=True),
        "mlp_in": into("mlp"),
        "mlp_pre": out("mlp.fc1"),
        "mlp_hidden": into("mlp.fc2"),
        "mlp_out": Place("dropout", "out", call=1),
    }


def _second() -> dict[str, Place]:
    """Return the points inside a block of Swin V2, whose MLP reads the stream itself."""
    return {
        "attn_out": Place("drop_path", "out", call=0),
        "resid_mid": into("intermediate", is_stream=True),
        "mlp_in": into("intermediate"),
        "mlp_pre": out("intermediate.dense"),
        "mlp_hidden": into("output.dense"),
        "mlp_out": Place("drop_path", "out", call=1),
    }
