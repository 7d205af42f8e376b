"""Conversations and special tokens: what the template says, once."""

import warnings
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from actkit.core.errors import InputError, InputWarning
from actkit.model import Model
from tests.core import tiny

THINKING = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}w9 {% if enable_thinking is defined and not enable_thinking %}"
    "w10 w11{% endif %}{% endif %}"
)
ROLES = {"user": "w70", "assistant": "w71"}


def chat(*contents: str) -> list[dict[str, str]]:
    roles = list(ROLES)
    return [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]


@pytest.fixture
def m() -> Model:
    own = tiny.model()
    own.tokenizer.chat_template = THINKING.replace("m['role']", "'w70'")
    return own


def ids(m: Model, inputs: Any, **how: Any) -> list[list[int]]:
    batch = m.encode(inputs, **how)
    assert batch.tokens is not None and batch.valid is not None
    return [t[v].tolist() for t, v in zip(batch.tokens, batch.valid, strict=True)]


def test_a_chat_ends_where_its_last_message_ends(m: Model) -> None:
    assert ids(m, chat("w1 w2")) == [[70, 1, 2, 9]]
    assert ids(m, chat("w1 w2", "w3 w4")) == [[70, 1, 2, 70, 3, 4]]
    several = [chat("w1"), chat("w1", "w3"), chat("w1", "w3", "w5")]
    assert ids(m, several) == [[70, 1, 9], [70, 1, 70, 3], [70, 1, 70, 3, 70, 5, 9]]
    assert ids(m, tuple(map(tuple, several[:2]))[1:][0]) == [[70, 1, 70, 3]]


def test_rows_of_data_hold_chats_under_messages(m: Model) -> None:
    rows = [{"messages": chat("w1", "w3")}, {"messages": chat("w5"), "id": 3}]
    assert ids(m, rows[0]) == [[70, 1, 70, 3]]
    assert ids(m, rows) == [[70, 1, 70, 3], [70, 5, 9]]


def test_settings_reach_the_template(m: Model) -> None:
    off = {"enable_thinking": False}
    assert ids(m, chat("w1"), template=off) == [[70, 1, 9, 10, 11]]
    assert ids(m, chat("w1")) == [[70, 1, 9]]
    m.encode.template = off
    assert ids(m, chat("w1")) == [[70, 1, 9, 10, 11]]
    assert ids(m, chat("w1"), template={"enable_thinking": True}) == [[70, 1, 9]]
    assert m.run(chat("w1"), record="embeddings").rows.token.tolist() == [[70, 1, 9, 10, 11]]


def test_generation_continues_an_answer(smollm2: Model) -> None:
    begun = [
        {"role": "user", "content": "Name the capital of France."},
        {"role": "assistant", "content": "The capital of France is"},
    ]
    tokenizer, net = smollm2.tokenizer, smollm2.module
    given = tokenizer.apply_chat_template(
        begun, continue_final_message=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        want = net.generate(**given, max_new_tokens=3, do_sample=False)  # type: ignore[operator]
    new = want[0, given["input_ids"].shape[1] :]
    assert smollm2.generate(begun, max_new_tokens=3) == [
        tokenizer.decode(new, skip_special_tokens=True)
    ]
    assert "Paris" in tokenizer.decode(new)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (chat("w1", ""), "an answer that ends a chat must have text, got ''"),
        ([{"text": "w1"}], r"messages with role and content, got \['text'\] in conversation 0"),
        ([{"input_ids": [1]}, {"input_ids": [2]}], "give batches one by one"),
    ],
)
def test_what_is_no_chat_is_refused(m: Model, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        m.encode(given)


def test_what_the_template_refuses_is_said_in_one_line(m: Model) -> None:
    m.tokenizer.chat_template = "{{ raise_exception('no system,\nplease') }}"
    with pytest.raises(InputError, match="template must take the messages: no system, please"):
        m.encode(chat("w1"))


def special(front: str, back: str) -> Model:
    """Return the tiny network with a tokenizer that puts tokens around a text."""
    own = tiny.model()
    own.tokenizer.add_special_tokens({"bos_token": "w80", "eos_token": "w81"})
    around = [(t, own.tokenizer.convert_tokens_to_ids(t)) for t in ("w80", "w81")]
    single = " ".join(filter(None, (front, "$A", back)))
    own.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=around
    )
    return own


@pytest.mark.parametrize(
    ("front", "back", "text", "want"),
    [
        ("w80", "", "w80 w1 w2", [80, 1, 2]),
        ("w80", "w81", "w80 w1 w2 w81", [80, 1, 2, 81]),
        ("", "w81", "w1 w81", [1, 81]),
        ("w80", "", "w80", [80]),
        ("w80", "", "w80 w80 w1", [80, 80, 1]),
    ],
)
def test_special_tokens_are_not_doubled(front: str, back: str, text: str, want: list[int]) -> None:
    m = special(front, back)
    with pytest.warns(InputWarning, match="was not added again; give chats as messages"):
        assert ids(m, text) == [want]


def test_special_tokens_that_the_text_lacks_are_added() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ids(special("w80", "w81"), ["w1", "w2 w3"]) == [[80, 1, 81], [80, 2, 3, 81]]
        assert ids(special("", ""), "w80 w80 w1") == [[80, 80, 1]]
        assert ids(special("w80", ""), "w1 w1") == [[80, 1, 1]]


def test_a_rendered_chat_given_as_text_is_the_chat() -> None:
    m = special("w80", "")
    m.tokenizer.chat_template = "w80 " + THINKING.replace("m['role']", "'w70'")
    text = m.tokenizer.apply_chat_template(chat("w1"), tokenize=False, add_generation_prompt=True)
    with pytest.warns(InputWarning):
        assert ids(m, text) == ids(m, chat("w1")) == [[80, 70, 1, 9]]


def test_whitespace_is_named() -> None:
    with pytest.raises(InputError, match=r"a prompt must have a token, got ' \\n' at index 1"):
        tiny.model().run(["w1", " \n"], record="embeddings")
