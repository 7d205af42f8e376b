"""Concise answers with SmolLM2: the bound on the KL, and the length of what is written.

Shapes: N prompts, V vocabulary.
"""

from math import sqrt

import pytest
from torch import Tensor

import actkit as ak
from actkit.model import Model
from actkit.steer._gain import kl_bounded_gain, logit_variance
from actkit.steer._measure import next_logits
from actkit.steer.vectors.asc import ASC
from tests._evidence import Evidence

ANSWERS = [
    ("What is 7 plus 5?", "12", "Let us work this out step by step. We start with the number 7"),
    ("What is the capital of France?", "Paris", "France is a country in Western Europe with many"),
    ("How many days are in a week?", "Seven", "Let us count them one after another. There is"),
    ("What colour is the sky?", "Blue", "This is an interesting question about how light behaves"),
    ("Which animal barks?", "A dog", "There are many animals, and each of them makes a sound of"),
    ("What is 9 minus 4?", "5", "To solve this problem, we first need to understand what it"),
    ("What do bees make?", "Honey", "Bees are fascinating insects that live together in large"),
    ("What is the opposite of hot?", "Cold", "In order to answer this, let us consider what the"),
    (
        "How many legs has a spider?",
        "Eight",
        "Spiders belong to a group of animals that",
    ),
    ("What is 6 times 3?", "18", "Multiplication can be seen as repeated addition. So 6 times 3"),
    (
        "Which season is after winter?",
        "Spring",
        "There are four seasons in a year, and",
    ),
    ("What is frozen water called?", "Ice", "Water can exist in three different states, namely as"),
    ("Who wrote Hamlet?", "Shakespeare", "Hamlet is one of the most famous plays in the"),
    ("What is half of 20?", "10", "To find the half of a number, we need to divide it by two. In"),
    (
        "What planet do we live on?",
        "Earth",
        "Our solar system has eight planets that",
    ),
    (
        "What do cows drink?",
        "Water",
        "This is a question which many people get wrong, because they",
    ),
    ("How many hours are in a day?", "24", "A day is the time that the Earth needs in"),
    ("What is 15 divided by 3?", "5", "Division tells us how many times one number fits"),
    (
        "What is the largest ocean?",
        "The Pacific",
        "There are five oceans on our planet",
    ),
    (
        "What gas do we breathe in?",
        "Oxygen",
        "The air around us is a mixture of several gases",
    ),
]
"""Questions with a concise answer, and with a verbose one as far as it is written.

Where verbose answers are written to their end, the last token says of both that nothing is left
to say, and of the verbose ones more surely: the vector then lengthens (at a KL of .1 nats 63 tokens
along it and 31 against it, with answers of 40 tokens at layer 18).
"""
QUESTIONS = (
    *("What is 8 plus 6?", "What is the capital of Italy?", "How many months are in a year?"),
    *("Which animal says meow?", "What colour is grass?", "What is 10 minus 3?"),
    *("What do hens lay?", "What is the opposite of big?", "How many wheels has a bicycle?"),
    *("What is 4 times 5?", "Which day comes after Monday?", "What is the capital of Japan?"),
    *("Who painted the Mona Lisa?", "What is a third of 30?", "Which star is the closest?"),
    *("What do plants need to grow?", "How many minutes are in an hour?", "What is 16 by 4?"),
    *("Which animal has a trunk?", "What is the last letter of the alphabet?"),
)


def chat(question: str, answer: str = "") -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}"


PROMPTS = [chat(question) for question in QUESTIONS]


@pytest.fixture(scope="module")
def asc(smollm2: Model) -> ASC:
    return ASC().fit(smollm2, [(chat(q, concise), chat(q, long)) for q, concise, long in ANSWERS])


def divergence(model: Model, edits: list[ak.Edit]) -> Tensor:
    """Return KL(p_0 || p_gamma) of each prompt's next token, (N,) in nats."""
    base, moved = (next_logits(model, PROMPTS, e).double().log_softmax(-1) for e in ((), edits))
    return (base.exp() * (base - moved)).sum(-1)


@pytest.mark.slow
@pytest.mark.paper("activation-steering-chain-thought")
def test_the_gain_bounds_the_kl(smollm2: Model, asc: ASC, evidence: Evidence) -> None:
    variance_N = logit_variance(smollm2, asc.edits, PROMPTS)

    def gain(eps: float) -> float:
        return sqrt(2 * eps / float(variance_N.mean()))

    small = 0.1 * gain(0.1)
    ratio = divergence(smollm2, asc.edits(small)) / (0.5 * small**2 * variance_N)
    what = "KL at a tenth of the gain / its second order, mean of 20 prompts"
    evidence(what, measured=ratio.mean(), at_least=0.9, at_most=1.1)
    for eps in (0.01, 0.05):
        reached = divergence(smollm2, asc.edits(gain(eps))).mean() / eps
        evidence(f"mean KL / eps at eps {eps}", measured=reached, at_least=0.5, at_most=2)

    few = PROMPTS[:3]
    halved = [kl_bounded_gain(smollm2, asc.edits, few, eps) for eps in (0.05, 0.025)]
    what = "gain at half the eps / gain"
    evidence(what, measured=halved[1] / halved[0], equals=sqrt(0.5), tolerance=1e-12)
    (edit,) = asc.bounded(smollm2, few, 0.05)
    assert edit.operation.scale == pytest.approx(halved[0], rel=1e-6)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.paper("activation-steering-chain-thought")
def test_answers_become_shorter(smollm2: Model, asc: ASC, evidence: Evidence) -> None:
    gain = kl_bounded_gain(smollm2, asc.edits, PROMPTS[:8], eps=0.1)

    def length(strength: float) -> float:
        written = smollm2.generate(PROMPTS, edits=asc.edits(strength), max_new_tokens=80)
        return sum(len(smollm2.tokenizer(text)["input_ids"]) for text in written) / len(written)

    ratio = length(gain) / length(-gain)
    evidence("mean length along the vector / against it", measured=ratio, at_most=0.9)
