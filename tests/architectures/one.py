"""One type, from its name to all its cells."""

import time
import warnings
from typing import Any

import transformers

from tests.architectures.build import build, types
from tests.architectures.checks import examined
from tests.architectures.feed import NoFeed
from tests.architectures.tweaks import NOT_EXAMINED


def one(kind: str) -> dict[str, Any]:
    """Return the result of one type; with "reason" and no cells if it cannot be examined."""
    begun = time.perf_counter()
    what = types()[kind][0]
    if kind in NOT_EXAMINED:
        return {"what": what, "reason": NOT_EXAMINED[kind]}
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
        return {"what": what, "reason": f"not built: {type(error).__name__}: {words}"}
    try:
        return examined(built)
    except NoFeed as error:
        return {"what": what, "reason": f"nothing it reads was found: {error}"}
