"""Labels of tokens: emoji and CJK, which byte-level tokenizers cut, against the text itself."""

from typing import Any

import pytest

from actkit.core.run.token_labels import token_label, token_labels
from actkit.model import Model
from tests.core import tiny

CUT = "I saw a \U0001f99c\U0001f99c in \u6771\u4eac today"


def test_parts_of_a_character_are_labelled_by_it(smollm2: Model) -> None:
    tokenizer = smollm2.tokenizer
    ids = tokenizer(CUT)["input_ids"]
    alone = [tokenizer.decode([i]) for i in ids]
    assert any("\ufffd" in text for text in alone), "the text must be cut inside a character"
    labels = token_labels(tokenizer, ids)
    assert len(labels) == len(ids) and not any("\ufffd" in label for label in labels)
    for label, text in zip(labels, alone, strict=True):
        assert "\ufffd" in text or label == text
    parts = [label for label in labels if "/" in label]
    sizes = [int(label.rpartition("/")[2]) for label in parts]
    whole = "".join(
        label.rpartition(" ")[0] if "/" in label else label
        for label in labels
        if "/" not in label or label.rpartition(" ")[2].startswith("1/")
    )
    assert whole == CUT and sizes and min(sizes) > 1


def test_a_part_alone_is_labelled_by_its_bytes(smollm2: Model) -> None:
    tokenizer = smollm2.tokenizer
    ids = tokenizer("\U0001f99c", add_special_tokens=False)["input_ids"]
    said = [token_label(tokenizer, i) for i in ids]
    assert len(ids) > 1
    want = "\U0001f99c".encode().hex().upper()
    assert "".join(c for label in said for c in label if c not in "<> ") == want


def test_a_text_that_ends_inside_a_character(smollm2: Model) -> None:
    ids = smollm2.tokenizer("so \U0001f99c")["input_ids"][:-1]
    labels = token_labels(smollm2.tokenizer, ids)
    assert labels[0] == "so" and labels[-1].startswith((" <F0", "<")) and labels[-1].endswith(">")


def test_the_replacement_character_itself_is_kept(smollm2: Model) -> None:
    ids = smollm2.tokenizer("a \ufffd b")["input_ids"]
    assert "\ufffd" in "".join(token_labels(smollm2.tokenizer, ids))


class Fallback:
    """A tokenizer with byte fallback, as SentencePiece has it."""

    pieces = ("\u2581so", "<0xF0>", "<0x9F>", "<0xA6>", "<0x9C>", "odd")

    def convert_ids_to_tokens(self, token: int) -> str:
        return self.pieces[token]

    def decode(self, ids: list[int]) -> str:
        data = b"".join(
            bytes([int(p[3:5], 16)]) if p.startswith("<0x") else p.replace("\u2581", " ").encode()
            for p in (self.pieces[i] for i in ids)
        )
        return data.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("ids", "labels"),
    [
        ([0, 1, 2, 3, 4], [" so", *(f"\U0001f99c {i}/4" for i in (1, 2, 3, 4))]),
        ([0, 1, 2], [" so", "<F0>", "<9F>"]),
        ([2, 0], ["<9F>", " so"]),
        ([1, 5], ["<F0>", "odd"]),
    ],
)
def test_byte_fallback(ids: list[int], labels: list[str]) -> None:
    tokenizer: Any = Fallback()
    assert token_labels(tokenizer, ids) == labels


def test_words_and_numbers() -> None:
    assert token_labels(tiny.tokenizer(), [3, 7]) == ["w3", "w7"]
    assert token_labels(None, [3, 7]) == ["3", "7"]
