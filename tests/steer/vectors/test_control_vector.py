"""Control vectors: recovered from planted states, and on deduction with SmolLM2."""

from collections.abc import Callable
from random import Random

import pytest
import torch
from torch import Tensor

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.steer._measure import next_logits
from actkit.steer._shift import logit_shift_report
from actkit.steer.vectors.control_vector import ControlVector, Readout, TurnState, control_vector
from tests._evidence import Evidence
from tests.core import tiny

PAIRS = [("w1 w2 w3", "w1 w2 w4"), ("w9 w3", "w8 w4"), ("w5 w5 w5 w3", "w6 w4")]


def planted(num: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return states h = offset + y u + noise for y = 1 and y = -1, and the unit vector u."""
    gen = torch.Generator().manual_seed(seed)
    u_D = torch.randn(width, generator=gen)
    u_D = u_D / u_D.norm()
    offset_D, scale_D = 3 + torch.randn(width, generator=gen), torch.linspace(0.1, 0.35, width)
    noise = torch.randn(2, num, width, generator=gen) * scale_D
    return offset_D + u_D + noise[0], offset_D - u_D + noise[1], u_D


@pytest.mark.paper("improving-reasoning-performance-large")
@pytest.mark.parametrize("readout", ["reading_contrast", "pca_contrast"])
def test_a_planted_direction_is_recovered(readout: Readout, evidence: Evidence) -> None:
    cosines = []
    for seed in range(100):
        positive, negative, u_D = planted(200, 48, seed)
        found = control_vector(positive, negative, readout)
        cosines.append(torch.cosine_similarity(found, u_D, dim=0))
        assert found.norm() == pytest.approx(2, rel=0.1), "as long as the mean difference"
    evidence(f"least cosine of {readout} over 100 seeds", measured=min(cosines), at_least=0.98)
    right = sum(float(c > 0) for c in cosines)
    evidence(f"right signs of {readout} in 100 seeds", measured=right, equals=100, tolerance=0)


def test_readouts_in_closed_form() -> None:
    positive, negative, _ = planted(31, 7, 0)
    reading = control_vector(positive, negative[:5], "reading")
    assert torch.equal(reading, positive.mean(0))
    contrast = control_vector(positive, negative[:5])
    torch.testing.assert_close(contrast, positive.mean(0) - negative[:5].mean(0))
    unit = control_vector(positive, negative, "pca_contrast", standardize=False)
    d_ND = (positive - negative).double()
    vectors = torch.linalg.eigh(d_ND.mT @ d_ND).eigenvectors
    assert abs(float(unit.double() @ vectors[:, -1])) == pytest.approx(1, abs=1e-6)
    assert d_ND.matmul(unit.double()).mean() > 0
    swapped = control_vector(negative, positive, "pca_contrast", standardize=False)
    torch.testing.assert_close(swapped, -unit)


def test_unpaired_sides_and_unknown_readouts_are_refused() -> None:
    model, unpaired = tiny.model(), {"positive": ["w1", "w2"], "negative": ["w3"]}
    assert ControlVector("reading").fit(model, unpaired).edits(1.0)
    with pytest.raises(InputError, match=r"paired differences.* \(2, 48\) and \(1, 48\)"):
        ControlVector("pca_contrast").fit(model, unpaired)
    unknown: dict[str, str] = {"readout": "mean"}
    with pytest.raises(InputError, match="readout must be one of"):
        ControlVector(**unknown).fit(model, PAIRS)  # type: ignore[arg-type]


@pytest.mark.paper("improving-reasoning-performance-large")
def test_normalised_states_keep_their_length(smollm2: Model, evidence: Evidence) -> None:
    texts = ["A frog is a cat. Cats fear dogs. A frog", "The sea was"]
    pairs = [("1 + 1 = 2", "kq dj ax"), ("2 + 3 = 5", "wv zz o")]
    cv = ControlVector(layers=14, normalise=True).fit(smollm2, pairs)
    bare, turned = (
        smollm2.run(texts, record="resid_post.14", edits=cv.edits(s)).flat("resid_post.14")[0]
        for s in (0.0, 1.5)
    )
    change = (turned.norm(dim=-1) / bare.norm(dim=-1) - 1).abs().max()
    evidence("largest relative change of |h| at strength 1.5", measured=change, at_most=1e-5)
    angle = torch.cosine_similarity(turned[1:], bare[1:], dim=-1).min()
    assert angle < 0.9, "the states did turn"


def test_turn_by_hand() -> None:
    turn = TurnState(torch.tensor([0.0, 3.0]), strength=torch.tensor([0.0, 1.0]))
    x = torch.cat([tiny.uneven(1, 50, 2), torch.tensor([4.0, 0.0]).expand(1, 50, 2)])
    turned = turn(x)
    assert torch.equal(turned[0], x[0])
    torch.testing.assert_close(turned[1], torch.tensor([3.2, 2.4]).expand(50, 2))


def relative(vector: Tensor, length: float) -> Callable[[float], list[ak.Edit]]:
    """Return edits at layer 14 that add a share of a length along a vector."""
    return lambda share: [ak.add("resid_post.14", vector / vector.norm() * length, share)]


ANIMALS = {
    "frog": "Frogs",
    "wolf": "Wolves",
    "mouse": "Mice",
    "cat": "Cats",
    "sheep": "Sheep",
    "dog": "Dogs",
    "cow": "Cows",
    "bear": "Bears",
}
NAMES = ("Rex", "Lily", "Emily", "Winona", "Bernhard", "Greg", "Julius", "Brian")


def deductions(num: int, seed: int) -> tuple[list[str], list[str], list[str]]:
    """Return items 'A is a B. Bs fear C. A fears', their answers and wrong ones."""
    rng = Random(seed)
    prompts, answers, wrong = [], [], []
    for _ in range(num):
        name = rng.choice(NAMES)
        is_a, fears, other = rng.sample(list(ANIMALS), 3)
        answers.append(f" {ANIMALS[fears].lower()}")
        wrong.append(f" {ANIMALS[other].lower()}")
        prompts.append(f"{name} is a {is_a}. {ANIMALS[is_a]} fear{answers[-1]}. {name} fears")
    return prompts, answers, wrong


@pytest.fixture(scope="module")
def deduction(smollm2: Model) -> tuple[Tensor, float]:
    """The vector of right less wrong answers at layer 14, and the mean length of states there."""
    prompts, answers, wrong = deductions(20, 1)
    pairs = [(p + a, p + w) for p, a, w in zip(prompts, answers, wrong, strict=True)]
    cv = ControlVector(layers=14).fit(smollm2, pairs)
    ends = smollm2.run(prompts, record="resid_post.14")["resid_post.14"][:, -1]
    return cv.vectors_[14], float(ends.norm(dim=-1).mean())


@pytest.mark.slow
@pytest.mark.paper("improving-reasoning-performance-large")
def test_small_steps_have_quadratic_kl(
    smollm2: Model, deduction: tuple[Tensor, float], evidence: Evidence
) -> None:
    prompts, answers, _ = deductions(12, 2)
    steps = (0.0, 0.0025, 0.005, 0.01, 0.02)
    kl = logit_shift_report(smollm2, relative(*deduction), prompts, answers, steps).kl
    evidence("KL at strength 0 (nats)", measured=kl[0], equals=0, tolerance=0)
    x, y = torch.tensor(steps[1:]).double().log(), kl[1:].log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    evidence("log-log slope of KL, steps to 2 % of |h|", measured=slope, equals=2, tolerance=0.2)


@pytest.mark.slow
@pytest.mark.paper("improving-reasoning-performance-large")
def test_deduction(smollm2: Model, deduction: tuple[Tensor, float], evidence: Evidence) -> None:
    """Log p of the right answer among eight animals; most are right without steering."""
    prompts, answers, _ = deductions(100, 0)
    strengths = (-0.2, -0.1, 0.0, 0.1, 0.2)
    swept = logit_shift_report(smollm2, relative(*deduction), prompts, answers, strengths)
    change = (swept.log_prob - swept.log_prob[2]).tolist()
    for i in (0, 1):
        what = f"log p(right) at {strengths[i]:g} |h| less at 0 (nats)"
        evidence(what, measured=change[i], at_most=-0.05)

    def right(edits: list[ak.Edit]) -> float:
        logits_NV = next_logits(smollm2, prompts[:40], edits)
        words = [f" {plural.lower()}" for plural in ANIMALS.values()]
        first = [smollm2.tokenizer(word)["input_ids"][0] for word in words]
        log_p = logits_NV.double()[:, first].log_softmax(-1)
        return float(log_p[range(40), [words.index(a) for a in answers[:40]]].mean())

    vector, length = deduction
    others = []
    for seed in range(10):
        gen = torch.Generator().manual_seed(seed)
        others.append(right(relative(torch.randn(576, generator=gen), length)(0.1)))
    gap = right(relative(vector, length)(0.1)) - torch.tensor(others).quantile(0.9)
    what = "log p(right) at 0.1 |h| less the 90th percentile of 10 random vectors (nats)"
    evidence(what, measured=gap, at_least=0.0)


def test_the_report_counts_and_refuses() -> None:
    model = tiny.model()
    edits = ControlVector().fit(model, PAIRS).edits
    answers = ["w4", "w9", "w4"]
    found = logit_shift_report(model, edits, tiny.PROMPTS, answers, (0.0, 0.7))
    for i, strength in enumerate(found.strengths):
        logits = model.run(tiny.PROMPTS, edits=edits(strength), logits=True).logits
        log_p = logits[:, -1].double().log_softmax(-1)
        two = log_p[:, [4, 9]].log_softmax(-1)[torch.arange(3), torch.tensor([0, 1, 0])]
        torch.testing.assert_close(found.log_prob[i], two.mean(), rtol=1e-5, atol=1e-6)
        assert found.accuracy[i] == (two > torch.tensor(0.5).log()).double().mean()
        entropy = torch.special.entr(log_p.exp()).sum(-1).mean()
        torch.testing.assert_close(found.entropy[i], entropy, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="needs an answer, got 3 and 1"):
        logit_shift_report(model, edits, tiny.PROMPTS, ["w4"])
    with pytest.raises(InputError, match="tokens of their own"):
        logit_shift_report(model, edits, tiny.PROMPTS, ["w4 w5", "w4", "w9"])
