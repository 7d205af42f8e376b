"""One type, from its name to all its cells."""

import time
import warnings
from typing import Any

import transformers

from tests.architectures.build import build, types
from tests.architectures.checks import examined
from tests.architectures.tweaks import NOT_BUILT


def one(kind: str) -> dict[str, Any]:
    """Return the result of one type; with "reason" alone if no network of it can be built."""
    begun = time.perf_counter()
    what = types()[kind][0]
    if kind in NOT_BUILT:
        return {"what": what, "reason": NOT_BUILT[kind]}
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = _result(kind, what)
    finally:
        transformers.logging.set_verbosity(verbosity)
    return result | {"seconds": round(time.perf_counter() - begun, 2)}


def _result(kind: str, what: str) -> dict[str, Any]:
    try:
        built = build(kind)
    except Exception as error:  # noqa: BLE001 - configurations raise whatever they like
        words = " ".join(str(error).split())[:160]
        return {"what": what, "reason": f"{type(error).__name__}: {words}"}
    return examined(built)
