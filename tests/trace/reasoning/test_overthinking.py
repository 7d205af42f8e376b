"""Overthinking: the lens against the network's own output, planted curves, a trained copier."""

import random
from typing import Any

import pytest
import torch

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace.reasoning.overthinking import (
    Demonstrations,
    Overthinking,
    ablated,
    critical_layer,
    layer_logits,
    overthinking,
)
from actkit.trace.reasoning.overthinking._demonstrations import accuracies, lens
from actkit.worlds.toy_transformer import toy
from tests._evidence import Evidence
from tests.core import tiny
from tests.trace._mixed_episodes import LABELS, episodes, trained

KEY = "overthinking-the-truth"


@pytest.mark.paper(KEY)
def test_the_lens_at_the_last_layer_is_the_networks_output(
    smollm2: Model, evidence: Evidence
) -> None:
    prompts = ["The capital of France is", "Water boils at one hundred", "w"]
    nets = {"SmolLM2": (smollm2, prompts), "a tiny Llama": (tiny.model(), tiny.PROMPTS)}
    for name, (model, texts) in nets.items():
        batch, net = model.encode(texts), model.module
        with torch.no_grad():
            own: Any = net(**batch.kwargs, logits_to_keep=1)
        off = (layer_logits(model, texts)[-1] - own.logits[:, -1]).abs().max()
        evidence(f"lens at the last layer of {name} less the output", measured=off, at_most=0.0)


def test_the_lens_at_a_middle_layer_is_the_network_without_the_later_blocks() -> None:
    net = toy(9, layers=3, heads=2, width=16, mlp=8, norm=True)
    tokens = torch.randint(9, (5, 7), generator=torch.Generator().manual_seed(0))
    found = layer_logits(Model(net), tokens)
    net.transformer.h = net.transformer.h[:2]
    torch.testing.assert_close(found[1], net(tokens).logits[:, -1])


def test_accuracy_is_calibrated_by_each_labels_mean() -> None:
    """Label 0 is favoured by 3 everywhere, and by 1 more where it is right."""
    logits = torch.tensor([[[9.0, 4.0, 0.0], [9.0, 3.0, 0.0], [9.0, 3.0, 0.0]]])
    args = logits, torch.tensor([1, 2]), torch.tensor([0, 1, 1])
    assert accuracies(*args, calibrate=False).tolist() == pytest.approx([1 / 3])
    assert accuracies(*args, calibrate=True).tolist() == [1.0]


@pytest.mark.paper(KEY)
@pytest.mark.parametrize("planted", [0, 3, 6])
def test_a_planted_critical_layer_is_recovered(planted: int, evidence: Evidence) -> None:
    """The lead opens at the planted layer, after a lead before it that closes again."""
    true, false = torch.full((7,), 0.9), torch.full((7,), 0.88)
    false[0] = 0.1 if planted else 0.88
    false[planted:] = torch.linspace(0.7, 0.3, 7 - planted)
    found = critical_layer(true, false)
    evidence(f"critical layer, planted at {planted}", measured=-1 if found is None else found,
             equals=planted, tolerance=0)  # fmt: skip


def test_the_bound_may_be_a_share_of_the_largest_lead() -> None:
    true, false = torch.full((6,), 0.9), torch.tensor([0.9, 0.8, 0.7, 0.45, 0.3, 0.1])
    assert critical_layer(true, false, share=0.5) == 3  # the lead passes 0.4 there
    assert critical_layer(true, false, share=0.9) == 5


def test_no_critical_layer_where_no_lead_stays() -> None:
    true, false = torch.tensor([0.5, 0.9, 0.9]), torch.tensor([0.5, 0.2, 0.9])
    assert critical_layer(true, false) is None
    assert critical_layer(true, true, share=0.5) is None
    seen = Overthinking(true, false, torch.zeros(3, 2))
    assert seen.early_exit == pytest.approx(0.9) and seen.gap == 0


def test_marks_and_scores_by_hand() -> None:
    """Two demonstrations of the answer's class, one of them with the true label."""
    true = torch.tensor([[4, 0, 5, 1, 6, 0, 4]])
    false = torch.tensor([[4, 1, 5, 1, 6, 0, 4]])
    demos = Demonstrations(true, false, torch.tensor([0]), labels=[0, 1])
    model = Model(toy(7, norm=True))
    assert demos.encoded(model)[3].tolist() == [[0, 1, 0, 0, 0, -1, 0]]
    last = model.run(false, record="attn_probs.1")["attn_probs.1"][0, :, -1]
    scores = overthinking(model, demos).scores_LH
    torch.testing.assert_close(scores[1], last[:, 1] - last[:, 5])


def test_heads_are_ranked_by_score() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.3, -0.8, 0.5]])
    seen = Overthinking(torch.zeros(2), torch.zeros(2), scores)
    assert seen.heads(3) == [(0, 0), (1, 2), (1, 0)]
    assert seen.heads(2, first_layer=1) == [(1, 2), (1, 0)]
    with pytest.raises(InputError, match="4 of 3 heads"):
        seen.heads(4, first_layer=1)


@pytest.fixture(scope="module")
def copier() -> Model:
    return Model(trained(400))


@pytest.fixture(scope="module")
def demos() -> Demonstrations:
    num, gen = 300, torch.Generator().manual_seed(0)
    shown = torch.ones(num, dtype=torch.bool)
    shift = torch.randint(1, LABELS, (num,), generator=gen)
    true, answers = episodes(num, 0 * shift, shown, seed=1)
    false, _ = episodes(num, shift, shown, seed=1)
    return Demonstrations(true, false, answers, list(range(LABELS)))


@pytest.mark.paper(KEY)
def test_a_trained_copier_overthinks(
    copier: Model, demos: Demonstrations, evidence: Evidence
) -> None:
    seen = overthinking(copier, demos)
    rec = copier.run(demos.false, record="resid_pre.0")
    first = lens(copier, rec["resid_pre.0"], rec.rows)
    embedded = accuracies(first[None], torch.arange(LABELS), demos.answers, calibrate=True)
    best = int(seen.false_L.argmax())
    evidence("accuracy with false labels: best layer", measured=seen.false_L[best], at_least=0.6)
    evidence("before the first block (chance 0.25)", measured=embedded, at_most=0.5)
    evidence("after the last block", measured=seen.false_L[-1], at_most=0.1)
    evidence("the best layer, of 0 to 3", measured=best, at_most=2)
    evidence("accuracy with true labels after the last block", measured=seen.true_L[-1],
             at_least=0.95)  # fmt: skip
    evidence("accuracy of stopping before the critical layer", measured=seen.early_exit,
             at_least=0.6)  # fmt: skip


@pytest.mark.paper(KEY)
def test_without_false_induction_heads_memory_comes_back(
    copier: Model, demos: Demonstrations, evidence: Evidence
) -> None:
    """All heads are of the critical layer and later ones: those before serve them."""
    seen = overthinking(copier, demos)
    late = seen.critical
    assert late is not None
    top = seen.heads(3, late)
    found = ablated(copier, demos, seen, top, mean=True)
    evidence("share of the gap that comes back without the top 3 heads", measured=found.recovered,
             at_least=0.3)  # fmt: skip
    evidence("accuracy lost with true labels", measured=found.harm, at_most=0.05)
    rest = [(i, h) for i in range(late, 4) for h in range(3) if (i, h) not in top]
    others = []
    for seed in range(5):
        order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))
        heads = [rest[i] for i in order[:3].tolist()]
        others.append(ablated(copier, demos, seen, heads, mean=True).recovered)
    evidence("the same of 3 random heads, mean of 5 draws", measured=sum(others) / 5, at_most=0.1)


WORDS = {
    " animal": ("dog", "cat", "horse", "cow", "lion", "rabbit", "tiger", "mouse", "sheep", "goat"),
    " food": ("bread", "cheese", "rice", "apple", "soup", "pasta", "cake", "banana", "potato",
              "egg"),
}  # fmt: skip


def categories(num: int, shots: int = 8, seed: int = 0) -> Demonstrations:
    """Draw lists of words with their kind, or with the other kind, and one word more."""
    draw, kinds = random.Random(seed), list(WORDS)
    true: list[str] = []
    false: list[str] = []
    for row in range(num):
        shown = [(kind, word) for kind in (0, 1) for word in draw.sample(WORDS[kinds[kind]], 5)]
        asked = shown.pop(5 * (row % 2))
        shown.remove(next(pair for pair in shown if pair[0] != asked[0]))
        draw.shuffle(shown)
        for side, flip in ((true, 0), (false, 1)):
            lines = [f"{word}:{kinds[kind ^ flip]}" for kind, word in shown[:shots]]
            side.append("\n".join([*lines, f"{asked[1]}:"]))
    return Demonstrations(true, false, torch.arange(num) % 2, kinds)


@pytest.mark.slow
@pytest.mark.paper(KEY)
def test_smollm2_overthinks_false_categories(smollm2: Model, evidence: Evidence) -> None:
    """Heads are of the critical layer and later ones; the paper ablates 5."""
    demos = categories(16)
    seen = overthinking(smollm2, demos)
    critical = seen.critical
    assert critical is not None
    evidence("SmolLM2, accuracy after the last layer: labels true", measured=seen.true_L[-1],
             at_least=0.85)  # fmt: skip
    evidence("labels false", measured=seen.false_L[-1], at_most=0.35)
    evidence("best layer less last one, labels false", measured=seen.gap, at_least=0.4)
    evidence("critical layer, of 30", measured=critical, at_least=10, at_most=25)
    late = seen.heads(5, critical)
    found = ablated(smollm2, demos, seen, late)
    evidence("share of the gap that comes back without 5 heads", measured=found.recovered,
             at_least=0.1)  # fmt: skip
    evidence("accuracy lost with true labels", measured=found.harm, at_most=0.1)
    others = []
    rest = [(i, h) for i in range(critical, 30) for h in range(9) if (i, h) not in late]
    for seed in range(3):
        order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))
        heads = [rest[i] for i in order[:5].tolist()]
        others.append(ablated(smollm2, demos, seen, heads).recovered)
    evidence("the same of 5 random late heads, mean of 3 draws", measured=sum(others) / 3,
             at_most=0.15)  # fmt: skip


def test_ablation_by_hand(demos: Demonstrations) -> None:
    model = Model(toy(LABELS + 24, layers=4, heads=4, width=48, positions=7, norm=True))
    acts = [model.run(side, record="z.2")["z.2"][:, :, 1] for side in (demos.true, demos.false)]
    edit = ak.set("z.2", torch.cat(acts).mean((0, 1)), ak.Where(heads=1))
    seen = overthinking(model, demos, calibrate=False)
    for mean, made in ((True, edit), (False, ak.scale("z.2", 0.0, ak.Where(heads=1)))):
        found = ablated(model, demos, seen, [(2, 1)], mean, calibrate=False)
        for side, accuracy in ((demos.true, found.true), (demos.false, found.false)):
            logits = model.run(side, edits=[made], logits=True).logits
            right = logits[:, -1, :LABELS].argmax(1) == demos.answers
            assert accuracy == pytest.approx(float(right.float().mean()))
        lost = float(seen.true_L[-1] - seen.false_L[-1])
        assert found.recovered * lost == pytest.approx(found.false - float(seen.false_L[-1]))
        assert found.harm == pytest.approx(float(seen.true_L[-1]) - found.true)


def test_bad_demonstrations_are_refused() -> None:
    one, model = torch.tensor([[2, 0, 3]]), Model(toy(4, norm=True))
    with pytest.raises(InputError, match="as many"):
        Demonstrations(one, one, torch.tensor([0, 1]), [0, 1])
    with pytest.raises(InputError, match="indices of 2 labels"):
        Demonstrations(one, one, torch.tensor([2]), [0, 1])
    with pytest.raises(InputError, match="label tokens only"):
        overthinking(model, Demonstrations(one, torch.tensor([[2, 0, 2]]), torch.tensor([0]),
                                           [0, 1]))  # fmt: skip
    with pytest.raises(InputError, match="as many tokens"):
        overthinking(model, Demonstrations(one, one[:, 1:], torch.tensor([0]), [0, 1]))
    with pytest.raises(InputError, match="tokenizer"):
        overthinking(model, Demonstrations(one, one, torch.tensor([0]), [" a", " b"]))
    with pytest.raises(InputError, match="two curves"):
        critical_layer(torch.zeros(2), torch.zeros(3))
    with pytest.raises(InputError, match="got 1 that are not"):
        critical_layer(torch.zeros(2), torch.tensor([0.0, torch.nan]))
