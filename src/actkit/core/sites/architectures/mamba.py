"""Mamba: one mixer a block, a state space instead of attention, and no MLP."""

from typing import Any

from actkit.core.sites.site import POINTS, Stack, into, out

MODEL_TYPES = ("mamba", "mamba2", "falcon_mamba")

NO_ATTENTION = "a Mamba block has no attention: read its mixer, backbone.layers.0.mixer:out"
NO_MLP = "a Mamba block has no MLP: read its mixer, backbone.layers.0.mixer:out"
NO_MIDDLE = "a Mamba block adds to the stream once: its middle is resid_post"


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack of blocks."""
    places = {
        "embeddings": out("embeddings"),
        "resid_pre": into(""),
        "resid_post": out(""),
        "final_norm": out("norm_f"),
        "logits": out("", "logits"),
    }
    return (
        Stack(
            blocks="layers.{}",
            num_blocks=config.num_hidden_layers,
            width=config.hidden_size,
            vocabulary=config.vocab_size,
            places=places,
            lacks={p: _reason(p) for p in POINTS if p not in places},
        ),
    )


def _reason(point: str) -> str:
    if point == "resid_mid":
        return NO_MIDDLE
    return NO_MLP if point.startswith(("mlp", "router", "expert")) else NO_ATTENTION
