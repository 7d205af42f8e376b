"""A fifth of all types, chosen by their names; `make architectures` examines all."""

import zlib

import pytest

from tests.architectures.build import types
from tests.architectures.one import one
from tests.architectures.tweaks import KNOWN_WRONG, NOT_EXAMINED

FIFTH = [
    kind for kind in types() if zlib.crc32(kind.encode()) % 5 == 0 and kind not in NOT_EXAMINED
]


def test_what_is_left_out_is_a_type() -> None:
    assert {*NOT_EXAMINED, *KNOWN_WRONG} <= types().keys()


@pytest.mark.parametrize("kind", FIFTH)
def test_nothing_is_wrong(kind: str) -> None:
    result = one(kind)
    assert "cells" in result, result["reason"]
    wrong = {name: words for name, (status, words) in result["cells"].items() if status == "wrong"}
    known = KNOWN_WRONG.get(kind, {})
    assert {k: w for k, w in wrong.items() if k not in known} == {}
    assert not known.keys() - wrong.keys(), f"{kind} is right now: delete it from KNOWN_WRONG"
