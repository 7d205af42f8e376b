"""FlexAC: the turn and the choice of pairs in closed form, context against memory with SmolLM2."""

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

import actkit as ak
from actkit.core.errors import InputError
from actkit.data import Cloze
from actkit.model import Model
from actkit.steer.maps.flexac import FlexAC, TurnAssociation, strongest
from tests._evidence import Evidence
from tests.core import tiny
from tests.steer._nats import last_logs, perplexity_ratio

PAIRS = [("w1 w2 w3 w5", "w1 w2 w4"), ("w9 w3", "w8 w4 w6 w2"), ("w5 w6", "w5 w6"), ("w7", "w3")]


def test_answers_follow_the_shared_tokens() -> None:
    """Brute force: the answers begin at tokens 2 and 2, 1 and 1, at the last, at the only one."""
    model, site = tiny.model(), "resid_post.1"
    starts = [(2, 2), (1, 1), (1, 1), (0, 0)]
    sides: list[Tensor] = []
    for side in range(2):
        read = [
            model.run(pair[side], record=site)[site][0, start[side] :].mean(0)
            for pair, start in zip(PAIRS, starts, strict=True)
        ]
        sides.append(torch.stack(read))
    cos = torch.cosine_similarity(sides[0], sides[1], dim=-1)
    far = cos.argsort()[:2]
    expected = (sides[0] - sides[1])[far].mean(0)
    found = FlexAC(share=0.5).fit(model, PAIRS).vectors_[1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_batches_of_tokens_are_read_like_texts() -> None:
    model = tiny.model()
    texts = FlexAC().fit(model, PAIRS[:1])
    given = [tuple({"input_ids": torch.tensor([_ids(t)])} for t in p) for p in PAIRS[:1]]
    batches = FlexAC().fit(model, given)
    for layer, vector in texts.vectors_.items():
        torch.testing.assert_close(batches.vectors_[layer], vector, rtol=1e-4, atol=1e-5)


def test_a_tasks_vector_joins_at_the_general_length() -> None:
    model = tiny.model()
    general, task = FlexAC(share=1.0).fit(model, PAIRS), FlexAC(share=1.0).fit(model, PAIRS[:1])
    adapted = general.adapted(model, PAIRS[:1], weight=3.0)
    both = general.vectors_[2] + 3 * task.vectors_[2]
    expected = both / both.norm() * general.vectors_[2].norm()
    torch.testing.assert_close(adapted.vectors_[2], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(general.vectors_[2], FlexAC(share=1.0).fit(model, PAIRS).vectors_[2])


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_the_share_must_be_one(share: float) -> None:
    with pytest.raises(InputError, match=r"share of pairs must lie in \(0, 1\]"):
        FlexAC(share=share).fit(tiny.model(), PAIRS)


def _ids(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


@pytest.mark.paper("flexac")
def test_strong_pairs_show_the_direction(evidence: Evidence) -> None:
    """A fifth of the pairs has it; its mean is half as long as each pair's noise."""
    gains = []
    for seed in range(20):
        gen = torch.Generator().manual_seed(seed)
        u = torch.nn.functional.normalize(torch.randn(61, generator=gen), dim=0)
        noise = torch.nn.functional.normalize(torch.randn(20, 61, generator=gen), dim=-1)
        strong = (torch.randperm(20, generator=gen) < 4)[:, None]
        faithful = 3 + tiny.uneven(20, 61, seed=seed)
        assoc = faithful + noise + 0.5 * 5 * strong * u
        cos = [
            torch.cosine_similarity(strongest(assoc, faithful, share), u, dim=0)
            for share in (0.2, 1.0)
        ]
        gains.append(cos[0] - cos[1])
    gain = torch.stack(gains).mean()
    evidence("cosine of the top fifth less that of all, 20 draws", measured=gain, at_least=0.05)


@pytest.mark.paper("flexac")
def test_the_turn(evidence: Evidence) -> None:
    h = tiny.uneven(5, 11, 48, seed=3, dtype=torch.float64).float() * 10
    v = tiny.uneven(48, seed=4)
    v = v / v.norm() * 0.3 * h.norm(dim=-1).mean()
    turned = TurnAssociation(v, strength=-1.0)(h)
    stretch = (turned.norm(dim=-1) / h.norm(dim=-1) - 1).abs().max()
    evidence("relative change of the length", measured=stretch, at_most=1e-5)
    there_and_back = TurnAssociation(v, False, strength=1.0)(
        TurnAssociation(v, False, strength=-1.0)(h)
    )
    off = ((there_and_back - h).norm(dim=-1) / h.norm(dim=-1)).mean()
    evidence("mean distance after -1 and +1, share of the length", measured=off, at_most=0.05)
    still = (TurnAssociation(v, strength=torch.zeros(5))(h) - h).abs().max()
    evidence("change at strength 0", measured=still, at_most=0)

    side = torch.linalg.qr(torch.stack([v, h[0, 0]], -1)).Q[:, 1] * v.norm()
    aligned = torch.stack([c * v + (1 - c**2) ** 0.5 * side for c in (0.81, 0.9, 0.99)])[None]
    for sign in (1.0, -1.0):
        turn = TurnAssociation(v, strength=sign * 0.5)
        shift = (turn(sign * aligned) - sign * aligned).norm(dim=-1).max()
        share = shift / (turn(side[None, None]) - side).norm()
        evidence(f"shift of aligned over orthogonal, {sign:+g}", measured=share, at_most=0.3)


def test_the_turn_is_the_written_formula() -> None:
    h, v = tiny.uneven(3, 2, 7, dtype=torch.float64), tiny.uneven(7, seed=1, dtype=torch.float64)
    for a in (0.7, -1.3):
        found = TurnAssociation(v, strength=a)(h.float())
        for row, new in zip(h.flatten(0, 1), found.flatten(0, 1), strict=True):
            cos = row @ (a * v) / (row.norm() * (a * v).norm())
            moved = row + a * (1 - cos) * v
            expected = (moved * row.norm() / moved.norm()).float()
            torch.testing.assert_close(new, expected, rtol=1e-5, atol=1e-5)


def said(row: Cloze) -> str:
    """Return a prompt whose context contradicts what the network knows."""
    of = f"the capital of {row.subject} is"
    return f"In this story, {of}{row.wrong}. Remember that {of}"


@pytest.mark.slow
@pytest.mark.paper("flexac")
def test_context_against_memory(smollm2: Model, evidence: Evidence) -> None:
    """Associative answers are what the network knows, faithful ones what the context says."""
    rows = [row for row in ak.data.capitals() if row.kind == "statement"]
    fit, tried, test = rows[:40], rows[40:46], rows[50:80]
    flexac = FlexAC().fit(smollm2, [(said(r) + r.answer, said(r) + r.wrong) for r in fit])

    def faith(items: list[Cloze], edits: list[ak.Edit]) -> float:
        """Return the mean probability of the context's answer among the two."""
        ids = [[smollm2.tokenizer(w)["input_ids"][0] for w in (r.wrong, r.answer)] for r in items]
        logs = last_logs(smollm2, [said(r) for r in items], edits)
        context, memory = logs.gather(-1, torch.tensor(ids)).unbind(-1)
        return float((context - memory).sigmoid().mean())

    def reach(layer: int) -> float:
        down, up = (faith(tried, flexac.at(layer).edits(a)) for a in (-0.5, 0.5))
        return down - up

    best = max((2, 7, 12, 17, 22, 27), key=reach)
    evidence("layer of the largest effect, of 30", measured=best, at_least=10, at_most=19)
    # The length of the vector is ours: at strength 2 it is as long as the states and the network
    # gives neither answer, so the range is -0.5 to 0.5 where -2 to 2 was suggested.
    strengths = (-0.5, -0.25, 0.0, 0.25, 0.5)
    made = flexac.at(best)
    shares = [faith(test, made.edits(a)) for a in strengths]
    order = -spearmanr(strengths, shares).statistic
    evidence("order of P(context) against strength (Spearman)", measured=order, at_least=0.999)
    evidence("P(context) at -0.5 less at 0.5", measured=shares[0] - shares[-1], at_least=0.1)
    prose = ak.data.text(num_samples=60)
    texts = [" ".join(prose[i : i + 2])[:100] for i in range(0, 30, 5)]
    for a in (-0.25, 0.25):
        cost = perplexity_ratio(smollm2, texts, made.edits(a)) - 1
        evidence(f"rise of perplexity at {a:g} (share)", measured=cost, at_most=0.1)
