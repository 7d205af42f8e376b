"""Steering Gemma-3-270M, beside what SmolLM2's tests claim.

It has no chat template, so what is asked in chats has no counterpart. A bound that holds for
SmolLM2 and not for Gemma is named in the docstring, and what was measured is pinned instead. Layers
lie as deep, of 18, as those of SmolLM2 do, of 30.

Shapes: N prompts.
"""

from itertools import pairwise
from math import log

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

import actkit as ak
from actkit.data import Cloze
from actkit.model import Model
from actkit.steer._measure import next_logits, random_like
from actkit.steer._shift import logit_shift_report
from actkit.steer.controllers.self_logits import SelfLogitsAugmentation
from actkit.steer.controllers.weighted_controller import WeightedController
from actkit.steer.inputs.deep_thinking_kv import DeepThinkingKV
from actkit.steer.maps.flexac import FlexAC
from actkit.steer.maps.linear_act import LinearAcT
from actkit.steer.maps.lineas import LinEAS
from actkit.steer.vectors.actadd import ActAdd
from actkit.steer.vectors.caa import CAA
from actkit.steer.vectors.control_vector import ControlVector
from tests.steer._nats import perplexity_ratio
from tests.steer._sentiment import PAIRS, log_odds, prose_loss
from tests.steer.controllers.test_activation_reasoner import propositions
from tests.steer.controllers.test_self_logits import lens, logits
from tests.steer.inputs.test_deep_thinking_kv import ordinary_cache, vanilla
from tests.steer.maps.test_flexac import said
from tests.steer.maps.test_linear_act_on_smollm2 import STRENGTHS
from tests.steer.maps.test_lineas_on_smollm2 import COST
from tests.steer.maps.test_lineas_on_smollm2 import STRENGTHS as STEPS
from tests.steer.vectors.test_actadd import NEUTRAL, WEDDING
from tests.steer.vectors.test_caa import QUESTIONS, positive_share, random_gaps
from tests.steer.vectors.test_control_vector import ANIMALS, deductions
from tests.steer.vectors.test_neuron_override_on_smollm2 import PROMPTS
from tests.steer.vectors.test_vista import code_words

HALF, DEEP = 8, 11
"""As deep as SmolLM2's layers 14 and 18."""


@pytest.mark.slow
def test_sentiment_of_answers(gemma: Model) -> None:
    """Does not hold on Gemma: 95 % of random vectors of the same length move the answers less.

    The vector does what it is for, to either side (.33), but of 20 random ones only 40 % move the
    answers less, and their mean is -.066 (at most .05): it is not told from chance by its size.
    """
    train, test = QUESTIONS[:20], QUESTIONS[20:]
    caa = CAA().fit(gemma, [(f"{q} loved", f"{q} hated") for q in train])

    def effect(layer: int) -> float:
        up, down = (positive_share(gemma, caa.at(layer).edits(c), train[:6]) for c in (1.0, -1.0))
        return up - down

    layer = max((6, 9, 11, 12, 13), key=effect)
    assert layer == 9
    strengths = [-1.0, -0.5, 0.0, 0.5, 1.0]
    shares = [positive_share(gemma, caa.at(layer).edits(c), test) for c in strengths]
    gap = shares[-1] - shares[0]
    assert gap >= 0.15
    assert gap == pytest.approx(0.326, abs=0.02)
    assert spearmanr(strengths, shares).statistic >= 0.9 - 1e-9

    gaps = random_gaps(gemma, caa.vectors_[layer], layer, test)
    assert sum(gaps) / 20 == pytest.approx(-0.066, abs=0.03)
    assert sum(abs(g) < gap for g in gaps) / 20 == pytest.approx(0.4, abs=0.1)


@pytest.mark.slow
def test_random_directions_do_less_than_the_concept_s_own(gemma: Model) -> None:
    """At the end of openings, where CAA is fitted on ends of sentences."""
    task = ak.steer.as_task("sentiment")
    task, _ = task.halves(0)
    edits = CAA(layers=DEEP).fit(gemma, task.examples.sample(0.3, 0)).edits(2.0)
    base = next_logits(gemma, task.prompts)

    def rise(own: list[ak.Edit]) -> float:
        moved = next_logits(gemma, task.prompts, own)
        return float((task.log_odds(gemma, moved) - task.log_odds(gemma, base)).mean())

    own, noise = rise(edits), [rise(random_like(edits, seed)) for seed in range(6)]
    assert own > max(noise) + 1
    assert own == pytest.approx(5.59, abs=0.2)


def test_normalised_states_keep_their_length(gemma: Model) -> None:
    """At four times SmolLM2's strength: the vector is short beside Gemma's states."""
    texts = ["A frog is a cat. Cats fear dogs. A frog", "The sea was"]
    pairs = [("1 + 1 = 2", "kq dj ax"), ("2 + 3 = 5", "wv zz o")]
    site = f"resid_post.{HALF}"
    cv = ControlVector(layers=HALF, normalise=True).fit(gemma, pairs)
    bare, turned = (
        gemma.run(texts, record=site, edits=cv.edits(s)).flat(site)[0] for s in (0.0, 6.0)
    )
    assert (turned.norm(dim=-1) / bare.norm(dim=-1) - 1).abs().max() <= 1e-5
    assert torch.cosine_similarity(turned[1:], bare[1:], dim=-1).min() < 0.9


@pytest.mark.slow
def test_deduction(gemma: Model) -> None:
    """Does not hold on Gemma: steps to 2 % of a state's length have a quadratic KL.

    The log-log slope is 1.72 there, and 2 for steps 40 times as small. Log p of the right answer
    falls to either side of 0, but by .95 nats at .1 where random vectors take 1.9 to 7.1.
    """
    prompts, answers, wrong = deductions(20, 1)
    pairs = [(p + a, p + w) for p, a, w in zip(prompts, answers, wrong, strict=True)]
    site = f"resid_post.{HALF}"
    vector = ControlVector(layers=HALF).fit(gemma, pairs).vectors_[HALF]
    length = float(gemma.run(prompts, record=site)[site][:, -1].norm(dim=-1).mean())

    def along(v: torch.Tensor, share: float) -> list[ak.Edit]:
        return [ak.add(site, v / v.norm() * length, share)]

    few, told, _ = deductions(12, 2)
    for factor, slope in ((1.0, 1.72), (1 / 40, 2.0)):
        steps = [factor * s for s in (0.0, 0.0025, 0.005, 0.01, 0.02)]
        kl = logit_shift_report(gemma, lambda s: along(vector, s), few, told, steps).kl
        assert kl[0] == 0
        found = np.polyfit([log(s) for s in steps[1:]], kl[1:].log().tolist(), 1)[0]
        assert found == pytest.approx(slope, abs=0.05)

    asked, right, _ = deductions(40, 0)
    words = [f" {plural.lower()}" for plural in ANIMALS.values()]
    own = gemma.tokenizer
    first = [own(word, add_special_tokens=False)["input_ids"][0] for word in words]

    def log_p(edits: list[ak.Edit]) -> float:
        log_p_NA = next_logits(gemma, asked, edits).double()[:, first].log_softmax(-1)
        return float(log_p_NA[range(40), [words.index(a) for a in right]].mean())

    bare = log_p([])
    changes = [log_p(along(vector, share)) - bare for share in (-0.2, -0.1, 0.1, 0.2)]
    assert max(changes[:2]) <= -0.05
    assert changes == pytest.approx([-3.34, -2.51, -0.95, -3.70], abs=0.15)
    others = []
    for seed in range(10):
        gen = torch.Generator().manual_seed(seed)
        others.append(log_p(along(torch.randn(640, generator=gen), 0.1)) - bare)
    assert changes[2] - torch.tensor(others).quantile(0.9) >= 0


@pytest.mark.slow
def test_sentiment_follows_the_strength(gemma: Model) -> None:
    act = LinearAcT().fit(gemma, PAIRS[:80])
    odds = [log_odds(gemma, act.edits(s)) for s in STRENGTHS]
    assert min(late - early for early, late in pairwise(odds)) >= 0.1
    assert odds == pytest.approx([3.53, 4.53, 5.42, 6.03, 6.63], abs=0.05)
    assert prose_loss(gemma, act.edits(0.25)) - prose_loss(gemma) <= 0.15


@pytest.mark.slow
def test_more_sentiment_at_equal_perplexity(gemma: Model) -> None:
    """Maps trained end to end against those fitted in turn."""
    bare, loss = log_odds(gemma), prose_loss(gemma)
    shift: dict[type, float] = {}
    for kind in (LinEAS, LinearAcT):
        steerer = kind().fit(gemma, PAIRS[:32])
        edits = [steerer.edits(s) for s in STEPS]
        costs = [0.0, *(prose_loss(gemma, e) - loss for e in edits)]
        shifts = [0.0, *(log_odds(gemma, e) - bare for e in edits)]
        shift[kind] = float(np.interp(COST, np.maximum.accumulate(costs), shifts))
    assert shift[LinEAS] >= 1.5
    assert shift[LinEAS] - shift[LinearAcT] >= 0.3
    assert [*shift.values()] == pytest.approx([2.41, 1.61], abs=0.1)


@pytest.mark.slow
def test_weddings(gemma: Model) -> None:
    """One pair, added behind <bos>, which Gemma's tokenizer puts first by itself."""
    own = gemma.tokenizer
    ids = [own(word, add_special_tokens=False)["input_ids"][0] for word in WEDDING]

    def rises(variants: list[list[ak.Edit]]) -> torch.Tensor:
        found_VN = gemma.sweep(
            [*NEUTRAL], [[], *variants], lambda x: x[:, -1].softmax(-1)[:, ids].sum(-1)
        )
        return found_VN[1:].sum(1) / found_VN[0].sum()

    actadd = ActAdd().fit(gemma, [(" weddings", " ")])
    layers = (4, 6, 9, 12)
    by_layer = rises([actadd.at(layer).edits(1.0) for layer in layers])
    assert layers[int(by_layer.argmax())] >= 9
    assert by_layer[3] >= 5
    assert float(by_layer[3]) == pytest.approx(113, rel=0.05)
    (vector,) = actadd.vectors_[12]
    chance = []
    for seed in range(10):
        u = torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed))
        push = u / u.norm() * vector.norm()
        chance.append([ak.add("resid_pre.12", push, 1.0, ak.Where(tokens=1))])
    draws = rises(chance)
    assert draws.mean() <= 1.5
    assert draws.max() <= 5


def test_limits_of_self_logits(gemma: Model) -> None:
    prompts = ["The sky over the sea is", "Once upon a time"]
    augmented = SelfLogitsAugmentation(window=1, gamma=1.0).fit(gemma, prompts)
    expected = lens(gemma, 16, prompts)
    error = (logits(gemma, augmented.edits(), prompts) - expected).abs().max()
    assert error / expected.abs().max() <= 1e-5
    assert torch.equal(logits(gemma, augmented.edits(0.0), prompts), logits(gemma, [], prompts))


def test_writing_back_what_was_there_changes_nothing(gemma: Model) -> None:
    sites = [f"mlp_hidden.{n}" for n in (6, 12, 17)]
    rec = gemma.run(PROMPTS, sites, logits=True)
    units = [3, 700, 2047]
    edits = [ak.set(s, rec[s][..., units], ak.Where(units=units)) for s in sites]
    again = gemma.run(PROMPTS, edits=edits, logits=True)
    assert torch.equal(again.logits, rec.logits)


def test_the_first_step_is_in_context_learning(gemma: Model) -> None:
    """The memory of windows is that of a plain cache, and <bos> is not repeated."""
    demos, queries = "France: Paris\nItaly: Rome\nSpain: Madrid\n", ["Japan:", "Great Britain:"]
    kv = DeepThinkingKV(steps=1).fit(gemma, demos)
    plain = ordinary_cache(gemma, demos)
    assert all(torch.equal(x, y) for x, y in zip(kv.memory_, plain, strict=True))
    expected = vanilla(gemma, demos, queries, "")
    found = kv.logits(gemma, queries)[:, -1].log_softmax(-1)
    assert (found - expected).abs().max() / expected.abs().max() <= 1e-5
    written = gemma.generate(kv.prompts(gemma, queries), cache=kv.cache(2), max_new_tokens=3)
    assert written == gemma.generate([demos + q for q in queries], max_new_tokens=3)
    assert [w.split("\n")[0] for w in written] == [" Tokyo", " London"]


@pytest.mark.slow
def test_propositions(gemma: Model) -> None:
    own, chance = propositions(gemma, f"resid_post.{DEEP}")
    assert own >= 0.95
    assert max(chance) <= 0.75


@pytest.mark.slow
def test_evidence_that_was_removed(gemma: Model) -> None:
    """Does not hold on Gemma: 5 random vectors change log p by at most .3 nats (here .36)."""
    rise, changes = code_words(gemma)
    assert rise >= 1
    assert rise == pytest.approx(3.85, abs=0.1)
    assert max(map(abs, changes)) == pytest.approx(0.359, abs=0.03)


@pytest.mark.slow
def test_demand_tells_harmful_requests(gemma: Model) -> None:
    """Does not hold on Gemma: the demand tells them with an AUROC of .97 (here .965)."""
    rows = ak.data.refusal()
    own = WeightedController().fit(gemma, [r for i, r in enumerate(rows) if i % 3])
    harmful, harmless = ([getattr(r, s) for r in rows[::3]] for s in ("positive", "negative"))
    (yes, _), (no, _) = own.demand(gemma, harmful), own.demand(gemma, harmless)
    told = [1] * len(yes) + [0] * len(no)
    scores = torch.cat([yes, no])
    assert roc_auc_score(told, scores.numpy()) == pytest.approx(0.965, abs=0.01)
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))
    assert roc_auc_score(told, scores[order].numpy()) == pytest.approx(0.5, abs=0.15)


@pytest.mark.slow
def test_context_against_memory(gemma: Model) -> None:
    """Layers as deep as those SmolLM2's test tries; its best ones are 10 to 19 of 30."""
    rows = [row for row in ak.data.capitals() if row.kind == "statement"]
    fit, tried, test = rows[:40], rows[40:46], rows[50:80]
    flexac = FlexAC().fit(gemma, [(said(r) + r.answer, said(r) + r.wrong) for r in fit])
    own = gemma.tokenizer

    def faith(items: list[Cloze], edits: list[ak.Edit]) -> float:
        words = [(r.wrong, r.answer) for r in items]
        ids = [[own(w, add_special_tokens=False)["input_ids"][0] for w in two] for two in words]
        found_NV = next_logits(gemma, [said(r) for r in items], edits)
        context_N, memory_N = found_NV.gather(-1, torch.tensor(ids)).unbind(-1)
        return float((context_N - memory_N).sigmoid().mean())

    def reach(layer: int) -> float:
        down, up = (faith(tried, flexac.at(layer).edits(a)) for a in (-0.5, 0.5))
        return down - up

    best = max((1, 4, 7, 10, 13, 16), key=reach)
    assert 10 / 30 <= best / 18 <= 19 / 30
    strengths = (-0.5, -0.25, 0.0, 0.25, 0.5)
    made = flexac.at(best)
    shares = [faith(test, made.edits(a)) for a in strengths]
    assert -spearmanr(strengths, shares).statistic >= 0.999
    assert shares[0] - shares[-1] >= 0.1
    assert shares[0] - shares[-1] == pytest.approx(0.314, abs=0.03)
    prose = ak.data.text(num_samples=60)
    texts = [" ".join(prose[i : i + 2])[:100] for i in range(0, 30, 5)]
    for a in (-0.25, 0.25):
        assert perplexity_ratio(gemma, texts, made.edits(a)) - 1 <= 0.1
