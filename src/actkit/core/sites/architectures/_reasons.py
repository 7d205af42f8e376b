"""Reasons for refusals that several tables share."""

from typing import Any

POST_NORM = "its blocks end with their norm, so resid_post of the last block is already normalised"
PARALLEL = "attention and MLP run side by side, so there is no stream between them"
CLASSES = "a score belongs to the whole image, not to one of its rows: read classifier:out"


def in_pieces(config: Any, *points: str) -> dict[str, str]:
    """Return refusals of points whose module runs on one piece of the tokens at a time."""
    size = getattr(config, "chunk_size_feed_forward", 0)
    reason = f"the MLP runs on pieces of {size} tokens (chunk_size_feed_forward)"
    return dict.fromkeys(points, reason) if size else {}
