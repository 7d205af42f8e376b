"""JSON that every reader takes: null where a number is NaN or infinite."""

import json
import math
from collections.abc import Mapping
from typing import Any


def as_json(value: Any) -> str:
    r"""Return nested plain data as JSON.

    Example:
        >>> as_json({"a": (1.5, math.nan)})
        '{\n "a": [\n  1.5,\n  null\n ]\n}'
    """
    return json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
