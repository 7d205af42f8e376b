"""Texts packed into token blocks of one length, without padding."""

from collections.abc import Iterable, Iterator
from typing import Any

from actkit.core.errors import DataError


def chunks(
    texts: Iterable[str], tokenizer: Any, length: int, separator: str = "\n\n"
) -> Iterator[list[int]]:
    """Join texts to one stream of tokens and yield it in blocks of `length` tokens.

    Nothing is padded or dropped: every block has `length` tokens except the last one, which
    holds the remaining 1 to `length` tokens. Only one text and one block are held at a time.

    Args:
        texts: Any iterable of strings, for example `Samples`.
        tokenizer: A Hugging Face tokenizer; its special tokens are not added.
        length: Tokens per block (>= 1).
        separator: Written between two texts; give `tokenizer.eos_token` for texts that have
            nothing to do with each other.

    Raises:
        DataError: `length` is below 1, or `texts` is one string or holds something else.
    """
    if length < 1:
        raise DataError(f"length must be at least 1 token, got {length}")
    if isinstance(texts, str):
        raise DataError(f"texts must be many strings, got one of {len(texts)} characters")
    return _blocks(texts, tokenizer, length, separator)


def _blocks(
    texts: Iterable[str], tokenizer: Any, length: int, separator: str
) -> Iterator[list[int]]:
    pending: list[int] = []
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"row {row}: a text must be a string, got {type(text).__name__}")
        joined = separator + text if row else text
        pending += tokenizer(joined, add_special_tokens=False, verbose=False)["input_ids"]
        full = len(pending) - len(pending) % length
        yield from (pending[i : i + length] for i in range(0, full, length))
        del pending[:full]
    if pending:
        yield pending
