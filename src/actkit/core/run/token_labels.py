"""Tokens as people can read them: also those that hold only a part of a character."""

import re
from collections.abc import Sequence
from typing import Any

LONGEST = 8
"""Tokens that one character is looked for in; UTF-8 has up to 4 bytes for one."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
BROKEN = "\ufffd"
"""What a tokenizer writes for bytes that are no whole character."""


def token_labels(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return the text of each token.

    Byte-level tokenizers cut characters that they seldom met, such as emoji and CJK, into several
    tokens. Each of them is labelled by the whole character and its part, "🦜 1/3"; where the text
    does not hold all of it, by its bytes, "<F0 9F>".

    Args:
        tokenizer: Of transformers; None for the ids themselves.
        ids: A text's tokens in order.
    """
    if tokenizer is None:
        return [str(i) for i in ids]
    found: list[str] = []
    while len(found) < len(ids):
        at = len(found)
        size = _whole(tokenizer, ids[at : at + LONGEST])
        if size == 1:
            found.append(tokenizer.decode([ids[at]]))
        elif size:
            text = tokenizer.decode(list(ids[at : at + size]))
            found += [f"{text} {part}/{size}" for part in range(1, size + 1)]
        else:
            found.append(_in_bytes(tokenizer, ids[at]))
    return found


def token_label(tokenizer: Any, token: int) -> str:
    """Return the text of one token that stands alone; bytes for a part of a character."""
    return token_labels(tokenizer, [token])[0]


def _whole(tokenizer: Any, ids: Sequence[int]) -> int:
    """Return how many of the tokens make whole characters together, 0 if none do."""
    for size in range(1, len(ids) + 1):
        if BROKEN not in tokenizer.decode(list(ids[:size])):
            return size
        data = [_bytes_of(tokenizer, i) for i in ids[:size]]
        if None not in data and _is_text(b"".join(d for d in data if d is not None)):
            return size  # the text holds the replacement character itself
    return 0


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _in_bytes(tokenizer: Any, token: int) -> str:
    """Return what of a token is text, and the rest in bytes."""
    data = _bytes_of(tokenizer, token)
    if data is None:
        return f"<token {token}>"
    told, rest = "", data
    while rest:
        size = next((n for n in range(1, 5) if _is_text(rest[:n])), 0)
        told += rest[:size].decode("utf-8") if size else f"<{rest[0]:02X}>"
        rest = rest[max(size, 1) :]
    return told.replace("><", " ")


def _bytes_of(tokenizer: Any, token: int) -> bytes | None:
    """Return the bytes that a token stands for; None where its tokenizer does not say."""
    piece = tokenizer.convert_ids_to_tokens(token)
    if not isinstance(piece, str):
        return None
    if single := _BYTE.fullmatch(piece):
        return bytes([int(single[1], 16)])
    if all(c in _OF_LETTER for c in piece):
        return bytes(_OF_LETTER[c] for c in piece)
    return None


def _letters() -> dict[str, int]:
    """Return the letters that byte-level tokenizers write for bytes.

    A byte that can be printed in Latin-1 stands for itself; the others take the letters from
    U+0100 on, in their order.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    letters = {chr(byte): byte for byte in printed}
    return letters | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_OF_LETTER = _letters()
