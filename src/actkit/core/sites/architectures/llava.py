"""LLaVA and its like: a language model that reads a vision tower's features among its tokens.

The language model is the main stack, the tower is "vision"; both come from their own tables.
`embeddings` are the tokens' own; the image's features stand in their places from `resid_pre.0` on.
"""

from dataclasses import replace
from typing import Any

from actkit.core.sites.architectures import tables
from actkit.core.sites.site import WHOLE, Stack

MODEL_TYPES = ("llava", "llava_next", "llava_onevision", "vipllava")


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the language model and, where its architecture has a table, the vision tower."""
    language, vision = config.text_config, config.vision_config
    return (
        *(below("language_model", s) for s in _known(language)),
        *(replace(s, name="vision", alias="", root="vision_tower") for s in _known(vision)),
    )


def _known(config: Any) -> tuple[Stack, ...]:
    table = tables().get(config.model_type)
    return () if table is None else table(config)


def below(path: str, stack: Stack) -> Stack:
    """Return the stack with its paths told from the module above, which knows the token ids."""
    places = {
        point: replace(place, path=f"{path}.{place.path}")
        for point, place in stack.places.items()
        if point in WHOLE and point != "logits"
    }
    return replace(stack, blocks=f"{path}.{stack.blocks}", places={**stack.places, **places})
