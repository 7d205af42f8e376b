"""Texts and conversations to token ids: templates, answers at the end, doubled special tokens."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from actkit.core.errors import InputError, InputWarning

Chat = Sequence[Mapping[str, Any]]


def is_chat(value: Any) -> bool:
    """Say whether a value is a conversation: messages, each with a role."""
    several = isinstance(value, list | tuple) and len(value) > 0
    return several and all(isinstance(m, Mapping) and "role" in m for m in value)


def is_answered(chat: Any) -> bool:
    """Say whether a value is a conversation whose last message is the assistant's."""
    return is_chat(chat) and chat[-1]["role"] == "assistant"


def rendered(tokenizer: Any, chat: Chat, template: Mapping[str, Any]) -> str:
    """Return a conversation as text.

    One that ends with the user's message goes on to where the answer begins. One that ends with
    an answer ends with the answer's last token: no turn is closed or opened, so that its last
    position is the answer's, and what is generated continues it.

    Args:
        tokenizer: With a chat template.
        chat: Its messages.
        template: Settings of the template (`enable_thinking`, `tools`, ...), which beat these.

    Raises:
        InputError: The template refuses the conversation, or does not write its answer out.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError("chat messages need a tokenizer with a chat template; there is none")
    answered = is_answered(chat)
    if answered and not chat[-1].get("content"):
        raise InputError(
            f"an answer that ends a chat must have text, got {chat[-1].get('content')!r}; "
            "leave the message out to let the network answer"
        )
    ends = {"add_generation_prompt": not answered, "continue_final_message": answered}
    try:
        text = tokenizer.apply_chat_template(
            [dict(m) for m in chat], tokenize=False, **{**ends, **template}
        )
    except _template_errors() as error:
        said = " ".join(str(error).split())
        raise InputError(f"the chat template must take the messages: {said}") from error
    return str(text)


def leading_ids(tokenizer: Any) -> list[int]:
    """Return what a tokenizer puts in front of every text, such as `<bos>`; often nothing.

    Blocks that are cut from running text need it, too: a network that has never seen a text
    without its first token computes something else.
    """
    text = "a"
    plain = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    whole: list[int] = list(tokenizer(text)["input_ids"])
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return whole[:start]


def token_ids(tokenizer: Any, text: str, special: bool) -> list[int]:
    """Return a text's token ids; a special token that it already has at an end is not doubled.

    Args:
        tokenizer: Of Hugging Face.
        text: Not empty.
        special: Add the special tokens that the tokenizer adds.
    """
    ids: list[int] = list(tokenizer(text, add_special_tokens=special)["input_ids"])
    if not special or len(ids) < 2:
        return ids
    known = set(getattr(tokenizer, "all_special_ids", ()))
    front = ids[0] == ids[1] and ids[0] in known
    back = ids[-1] == ids[-2] and ids[-1] in known
    if not (front or back):
        return ids
    plain = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    start = next((i for i in range(len(ids)) if ids[i : i + len(plain)] == plain), None)
    if start is None:  # the text changes with what is added: it is left as the tokenizer has it
        return ids
    before, after = ids[:start], ids[start + len(plain) :]
    dropped = [before.pop()] if before and front else []
    dropped += [after.pop(0)] if after and back else []
    if dropped:
        named = ", ".join(map(str, tokenizer.convert_ids_to_tokens(dropped)))
        warnings.warn(
            f"a text that has its special tokens gets them once: {named} was not added again; "
            "give chats as messages, or leave the token out of the text",
            InputWarning,
            stacklevel=2,
        )
    return [*before, *plain, *after]


def _template_errors() -> tuple[type[Exception], ...]:
    """Return what templates raise, which stop at messages that they cannot write."""
    try:
        from jinja2.exceptions import TemplateError
    except ImportError:
        return (ValueError, TypeError)
    return (ValueError, TypeError, TemplateError)
