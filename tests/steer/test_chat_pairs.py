"""Conversations that end with the answer are read at the answer, by every steerer of pairs."""

from typing import Any

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.steer._base import ContrastSteerer
from actkit.steer._examples import Examples
from actkit.steer._states import states

QUESTIONS = ["How was the film?", "What do you think of the food here, and of the waiters?"]
ANSWERS = [("A joy from start to end.", "Dull."), ("Wonderful", "The worst that I ever had!")]


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def text(m: Model, question: str, answer: str) -> str:
    """Return the conversation up to the answer's last letter, put together by hand."""
    asked = [{"role": "user", "content": question}]
    head = m.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    return f"{head}{answer}"


def pairs(make: Any) -> list[tuple[Any, Any]]:
    both = zip(QUESTIONS, ANSWERS, strict=True)
    return [(make(q, good), make(q, bad)) for q, (good, bad) in both]


def test_the_vector_is_that_of_the_answers_last_tokens(smollm2: Model) -> None:
    site, own = "resid_post.17", []
    for question, answers in zip(QUESTIONS, ANSWERS, strict=True):
        ends = []
        for answer in answers:
            ids = smollm2.tokenizer(text(smollm2, question, answer), return_tensors="pt")
            with torch.no_grad():
                hidden = smollm2.module(**ids, output_hidden_states=True).hidden_states
            assert smollm2.tokenizer.decode(ids["input_ids"][0, -1:]).strip() in answer
            ends.append(hidden[18][0, -1])
        own.append(ends[0] - ends[1])
    want = torch.stack(own).mean(0)
    found = ak.get("caa")(layers=17).fit(smollm2, pairs(chat)).vectors_[17]
    torch.testing.assert_close(found, want, rtol=1e-3, atol=2e-3)
    # a new turn that is opened behind the answer is another place altogether
    texts = [t for pair in pairs(lambda q, a: text(smollm2, q, a)) for t in pair]
    opened = states(smollm2, [f"{t}<|im_end|>\n<|im_start|>assistant\n" for t in texts], site)[site]
    wrong = (opened[::2] - opened[1::2]).mean(0)
    assert torch.cosine_similarity(wrong, want, dim=0) < 0.9


def tensors(steerer: ContrastSteerer) -> list[Tensor]:
    found = [edit.operation.tensors() for edit in steerer.edits(1.0)]
    return [t for own in found for _, t in sorted(own.items())]


def of_contrasts() -> list[str]:
    own: list[tuple[str, Any]] = [(m.name, ak.get(m.name)) for m in ak.methods("steer")]
    return [n for n, m in own if isinstance(m, type) and issubclass(m, ContrastSteerer)]


@pytest.mark.parametrize(
    "name", ["caa", "control_vector", "linear_act", "persona", "lineas", "austeer"]
)
def test_every_steerer_of_pairs_reads_chats_as_it_reads_the_text(smollm2: Model, name: str) -> None:
    assert name in of_contrasts()
    if name == "persona":  # it reads the mean over a chat's answer, and only the end of a text
        plus = pairs(chat)
        read = ak.get(name)(layers=12).fit(smollm2, plus)
        ids = [smollm2.encode(c).tokens for p in plus for c in p]
        assert all(i is not None and int(i[0, -1]) != 198 for i in ids)  # no newline of a turn
        assert read.vectors_[12].isfinite().all()
        return
    how = {"num_steps": 2} if name == "lineas" else {}
    kinds = (pairs(chat), pairs(lambda q, a: text(smollm2, q, a)))
    chats, texts = (tensors(ak.get(name)(**how).fit(smollm2, data)) for data in kinds)
    assert len(chats) == len(texts) > 0
    assert all(torch.equal(a, b) for a, b in zip(chats, texts, strict=True))


def test_examples_of_either_end_may_stand_side_by_side(smollm2: Model) -> None:
    asked = [{"role": "user", "content": QUESTIONS[0]}]
    data = [(chat(QUESTIONS[0], "Fine."), asked)]
    plus, minus = (
        states(smollm2, side, "resid_post.3")["resid_post.3"]
        for side in (Examples.of(data).positive, Examples.of(data).negative)
    )
    ends = (text(smollm2, QUESTIONS[0], "Fine."), text(smollm2, QUESTIONS[0], ""))
    for got, end in zip((plus, minus), ends, strict=True):
        want = smollm2.run(end, record="resid_post.3")["resid_post.3"][0, -1]
        torch.testing.assert_close(got[0], want)


def test_an_answer_without_text_is_refused(smollm2: Model) -> None:
    with pytest.raises(InputError, match="an answer that ends a chat must have text, got ''"):
        smollm2.run(chat("Hm?", ""), record="resid_post.3")
