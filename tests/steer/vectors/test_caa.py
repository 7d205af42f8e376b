"""Contrastive activation addition: exact on a linear head, and on sentiment with SmolLM2."""

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.steer._measure import next_logits
from actkit.steer.vectors.caa import CAA
from tests._evidence import Evidence
from tests.core import tiny

PAIRS = [("w1 w2 w3", "w1 w2 w4"), ("w9 w3", "w8 w4"), ("w5 w5 w5 w3", "w6 w4")]


def test_vector_is_the_mean_difference_at_the_last_token() -> None:
    model = tiny.model()
    caa = CAA().fit(model, PAIRS)
    for layer in range(tiny.LAYERS):
        site = f"resid_post.{layer}"
        one_by_one = [
            model.run(plus, record=site)[site][0, -1] - model.run(minus, record=site)[site][0, -1]
            for plus, minus in PAIRS
        ]
        expected = torch.stack(one_by_one).double().mean(0)
        torch.testing.assert_close(caa.vectors_[layer].double(), expected, rtol=1e-4, atol=1e-5)


def test_normalised_vectors_are_as_long_as_the_states() -> None:
    model = tiny.model()
    plain, same = CAA().fit(model, PAIRS), CAA(normalise=True).fit(model, PAIRS)
    rec = model.run([p for p, _ in PAIRS], record="resid_post.1")["resid_post.1"][:, -1]
    v, u = same.vectors_[1], plain.vectors_[1]
    torch.testing.assert_close(v.norm(), rec.norm(dim=-1).mean())
    assert torch.cosine_similarity(v, u, dim=0) > 1 - 1e-6


def test_only_tokens_from_the_end_of_the_prompt_on_are_steered() -> None:
    model = tiny.model()
    edits = CAA(layers=1).fit(model, PAIRS).edits(3.0)
    bare = model.run(tiny.PROMPTS[0], logits=True).logits
    steered = model.run(tiny.PROMPTS[0], edits=edits, logits=True).logits
    assert bare is not None
    assert steered is not None
    assert torch.equal(bare[:, :-1], steered[:, :-1])
    assert not torch.equal(bare[:, -1], steered[:, -1])


def test_unpaired_sides_are_refused() -> None:
    with pytest.raises(InputError, match=r"pairs.* got 2 and 1"):
        CAA().fit(tiny.model(), {"positive": ["w1", "w2"], "negative": ["w3"]})


class Block(torch.nn.Module):
    """One block that feeds a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = torch.nn.Linear(5, 7), torch.nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, 3) from (B, T, 5)."""
        out: Tensor = self.head(self.block(x))
        return out


@pytest.mark.paper("steering-llama-2-contrastive")
def test_exact_on_a_linear_head(evidence: Evidence) -> None:
    torch.manual_seed(0)
    net = Block().double()
    x, v = torch.randn(2, 3, 5).double() * 3 + 1, torch.randn(7).double()
    model = ak.open(net)
    for alpha in (0.0, -2.0, 0.7):
        edit = ak.add("block:out", v, alpha)
        moved = model.run(x, edits=[edit]).output - net(x)
        expected = alpha * net.head.weight @ v
        error = (moved - expected).abs().max().item()
        evidence(f"logit change less alpha W v, alpha {alpha:g}", measured=error, at_most=1e-5)


THINGS = (
    *("film", "novel", "play", "concert", "meal", "hotel", "show", "album", "exhibition"),
    *("lecture", "course", "phone", "car", "garden", "museum"),
)
QUESTIONS = [
    f"Question: what did the critics think of the {thing}? Either they {a} it or they {b} it.\n"
    "Answer: They"
    for thing in THINGS
    for a, b in (("loved", "hated"), ("hated", "loved"))
]
"""30 questions that name both answers, each order once.

The answers are words and not the letters A and B: at this size the network's choice of a letter
does not depend on what the letter stands for, and no vector moves it (largest change .002).
"""


def positive_share(model: Model, edits: list[ak.Edit], questions: list[str]) -> float:
    """Return the mean probability of the positive answer among the two."""
    plus, minus = (model.tokenizer(w)["input_ids"][-1] for w in (" loved", " hated"))
    logits = next_logits(model, questions, edits)
    return float((logits[:, plus] - logits[:, minus]).sigmoid().mean())


def random_gaps(model: Model, like_D: Tensor, layer: int, questions: list[str]) -> list[float]:
    """Return what 20 random vectors of a length move: the share at +1 less that at -1."""
    gaps = []
    for seed in range(20):
        gen = torch.Generator().manual_seed(seed)
        u = torch.randn(len(like_D), generator=gen)
        u = u / u.norm() * like_D.norm()
        up, down = (
            positive_share(
                model, [ak.add(f"resid_post.{layer}", u, c, ak.Where(tokens="last"))], questions
            )
            for c in (1.0, -1.0)
        )
        gaps.append(up - down)
    return gaps


@pytest.mark.slow
@pytest.mark.paper("steering-llama-2-contrastive")
def test_sentiment_of_answers(smollm2: Model, evidence: Evidence) -> None:
    """The layer is the one of the largest effect on the questions it was fitted on."""
    train, test = QUESTIONS[:20], QUESTIONS[20:]
    caa = CAA().fit(smollm2, [(f"{q} loved", f"{q} hated") for q in train])

    def effect(layer: int) -> float:
        up, down = (positive_share(smollm2, caa.at(layer).edits(c), train[:6]) for c in (1.0, -1.0))
        return up - down

    layer = max((10, 15, 18, 20, 22), key=effect)
    strengths = [-1.0, -0.5, 0.0, 0.5, 1.0]
    shares = [positive_share(smollm2, caa.at(layer).edits(c), test) for c in strengths]
    gap = shares[-1] - shares[0]
    evidence("P(positive) at +1 less at -1, held out", measured=gap, at_least=0.15)
    order = spearmanr(strengths, shares).statistic
    evidence("Spearman of P(positive) and strength", measured=order, at_least=0.9)

    gaps = random_gaps(smollm2, caa.vectors_[layer], layer, test)
    mean = torch.tensor(gaps).mean().abs()
    # single draws reach +-.5, since the vector is as long as the state; hence 20 draws, not 5
    evidence("|mean| of the same of 20 random vectors of its length", measured=mean, at_most=0.05)
    share = torch.tensor([abs(g) < gap for g in gaps]).float().mean()
    evidence("share of random vectors that move less", measured=share, at_least=0.95)
