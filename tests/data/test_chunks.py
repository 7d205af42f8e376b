from collections.abc import Iterator
from typing import Any

import pytest

from actkit import data
from actkit.core.errors import DataError


class Letters:
    """One token per character: its code."""

    def __call__(self, text: str, **settings: bool) -> dict[str, list[int]]:
        assert settings == {"add_special_tokens": False, "verbose": False}
        return {"input_ids": [ord(c) for c in text]}


def as_text(blocks: Iterator[list[int]]) -> list[str]:
    return ["".join(map(chr, block)) for block in blocks]


def test_blocks_are_full_and_the_last_one_holds_the_rest() -> None:
    texts = ["abcdefg", "", "h", "ijk"]
    assert as_text(data.chunks(texts, Letters(), 4, "|")) == ["abcd", "efg|", "|h|i", "jk"]
    assert as_text(data.chunks(texts, Letters(), 14, "|")) == ["abcdefg||h|ijk"]
    assert as_text(data.chunks(["abcd"], Letters(), 2)) == ["ab", "cd"]
    assert as_text(data.chunks([], Letters(), 2)) == []


@pytest.mark.parametrize("length", [1, 7, 128, 100_000])
def test_joined_blocks_are_the_stream_of_a_real_tokenizer(
    length: int, smollm2_tokenizer: Any
) -> None:
    texts = data.text("thoreau", 9)
    blocks = list(data.chunks(texts, smollm2_tokenizer, length, "\n"))
    assert {len(block) for block in blocks[:-1]} <= {length} and 1 <= len(blocks[-1]) <= length
    assert smollm2_tokenizer.decode([t for block in blocks for t in block]) == "\n".join(texts)


def test_texts_are_read_only_as_far_as_blocks_are_taken() -> None:
    taken: list[int] = []

    def endless() -> Iterator[str]:
        while True:
            taken.append(1)
            yield "abc"

    blocks = data.chunks(endless(), Letters(), 5, "")
    assert as_text(iter([next(blocks), next(blocks)])) == ["abcab", "cabca"] and len(taken) == 4


def test_bad_input_is_refused_before_the_first_block() -> None:
    with pytest.raises(DataError, match="at least 1 token, got 0"):
        data.chunks(["a"], Letters(), 0)
    with pytest.raises(DataError, match="one of 5 characters"):
        data.chunks("hello", Letters(), 3)
    with pytest.raises(DataError, match="row 1: a text must be a string, got int"):
        list(data.chunks(["a", 7], Letters(), 3))  # type: ignore[list-item]
