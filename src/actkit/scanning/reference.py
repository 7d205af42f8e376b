"""What is usual: the numbers of a scan for networks that were measured once, by kind.

`usual.json` is written by `python -m bench.usual`; no number in it was typed.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from actkit.model import Model

LANGUAGE = "language models"
TABLE = Path(__file__).with_name("usual.json")


def kind_of(model: Model) -> str:
    """Return what a network is called among its like; "" if it is none of those in the table."""
    module: Any = model.module
    if bool(getattr(module, "can_generate", lambda: False)()):
        return LANGUAGE
    if model.tokenizer is not None:
        return "text encoders"
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.in_channels != 3:
        return ""
    attends = any("attn_probs" in s.name for s in model.sites())
    return "vision transformers" if attends else "convolutional networks"


@cache
def _table() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return found


def usual(kind: str, key: str, weights: str | None) -> Mapping[str, float]:
    """Return a page's number for the other networks of a kind, by name.

    Args:
        kind: As `kind_of` says it.
        key: Of the page.
        weights: Hash of the scanned network's weights, which is not held against itself.
    """
    others = [row for row in _table().get(kind, []) if row["weights"] != weights]
    return {
        f"{row['model']}, {kind[:-1]}": row["numbers"][key]
        for row in others
        if row["numbers"].get(key) is not None
    }
