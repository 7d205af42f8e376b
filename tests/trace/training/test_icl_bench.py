"""Context against memory: the data, the model of three logits, and two networks trained."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.trace.training.icl_bench import (
    IclBatch,
    IclData,
    IclNetwork,
    InductionModel,
    _measures,
    icl_bench,
)
from tests._evidence import Evidence

KEY = "mechanistic-basis-data-dependence"


def zipf_exponent(classes: Tensor, num_classes: int) -> float:
    """Return the exponent of greatest likelihood."""
    from scipy.optimize import minimize_scalar

    log_rank_K = torch.arange(1, num_classes + 1).double().log()
    mean = log_rank_K[classes].mean()
    nats = minimize_scalar(
        lambda a: float(a * mean + (-a * log_rank_K).logsumexp(0)), bounds=(-1, 4), method="bounded"
    )
    return float(nats.x)


@pytest.mark.paper(KEY)
@pytest.mark.parametrize("zipf", [0.0, 0.7, 1.5])
def test_data_are_as_bursty_noisy_and_skewed_as_asked(zipf: float, evidence: Evidence) -> None:
    data = IclData(num_classes=60, num_labels=7, pairs=12, burst=3, zipf=zipf, noise=0.4, width=33)
    batch = data.draw(4000, seed=1)
    off = (batch.matches.sum(1) - 3).abs().max()
    evidence(f"(a) copies of the asked class less those asked for, Zipf {zipf:g}", measured=off,
             at_most=0)  # fmt: skip
    found = zipf_exponent(batch.class_BS[:, -1], 60)
    evidence("Zipf exponent of greatest likelihood", measured=found, equals=zipf, tolerance=0.1)
    scaled = batch.input_BTD[:, ::2] * (1 + 0.4**2) ** 0.5 - data.means[batch.class_BS]
    noise = scaled.square().sum(-1).mean().sqrt()
    evidence("noise within a class", measured=noise, equals=0.4, tolerance=0.01)


def test_labels_belong_to_classes_and_their_vectors_to_labels() -> None:
    data = IclData(num_classes=30, num_labels=7, pairs=6, burst=2, width=5)
    for batch, copies in ((data.draw(50), 2), (data.in_weights(50), 0)):
        assert torch.equal(batch.label_BS, batch.class_BS % 7)
        assert (batch.matches.sum(1) == copies).all()
        assert torch.equal(batch.input_BTD[:, 1::2], data.label_vectors[batch.label_BS[:, :-1]])
    assert (data.in_weights(50).class_BS.sort(1).values.diff(dim=1) > 0).all()


@pytest.mark.parametrize("swapped", [False, True])
def test_only_the_context_tells_labels_in_context(swapped: bool) -> None:
    data = IclData(num_classes=9, num_labels=9, pairs=8, burst=4)
    batch = data.in_context(2000, burst=2, swapped=swapped)
    row, first = torch.arange(2000), batch.matches.long().argmax(1)
    assert torch.equal(batch.label_BS[row, first], batch.answers)
    assert (batch.matches.sum(1) == 2).all()
    if swapped:
        assert (batch.class_BS < 9).all()
        assert (batch.answers != batch.class_BS[:, -1] % 9).all()
    else:
        assert (batch.class_BS >= 9).all()
        counts = batch.answers.bincount(minlength=9) / 2000
        assert counts.min() > 0.08 and counts.max() < 0.15
    assert torch.equal(batch.input_BTD, data.in_context(2000, 2, swapped).input_BTD)
    assert not torch.equal(batch.input_BTD, data.in_context(2000, 2, swapped, seed=1).input_BTD)


def contexts(num_pairs: int, num_labels: int) -> IclBatch:
    """Every context of different classes, with every labelling and every asked class."""
    rows = product(product(range(num_labels), repeat=num_pairs), range(num_pairs))
    labels, classes = zip(
        *(([*label, label[i]], [*range(num_pairs), i]) for label, i in rows), strict=True
    )
    return IclBatch(torch.empty(len(labels), 0, 0), torch.tensor(classes), torch.tensor(labels))


def model(*logits: float, num_labels: int) -> InductionModel:
    return InductionModel(torch.tensor(logits, dtype=torch.float64), num_labels)


@pytest.mark.paper(KEY)
@pytest.mark.parametrize(("num_pairs", "num_labels"), [(3, 2), (4, 3), (5, 3)])
def test_limits_of_the_induction_model(num_pairs: int, num_labels: int, evidence: Evidence) -> None:
    """Blind attention takes the label that is most frequent: right in max count / N."""
    every = contexts(num_pairs, num_labels)
    blind = sum(
        max(label.count(x) for x in label) / num_pairs
        for label in product(range(num_labels), repeat=num_pairs)
    ) / num_labels**num_pairs  # fmt: skip
    evidence(f"(b) accuracy without attention logits, {num_pairs} pairs, {num_labels} labels",
             measured=model(0, 0, 1, num_labels=num_labels).accuracy(every), equals=blind,
             tolerance=1e-9)  # fmt: skip
    evidence("accuracy with large ones",
             measured=model(60, 60, 60, num_labels=num_labels).accuracy(every), equals=1.0,
             tolerance=0)  # fmt: skip
    sure = model(60, 60, 60, num_labels=num_labels).probs(every)
    right = sure.gather(1, every.answers[:, None]).min()
    evidence("smallest probability of the right answer there", measured=right, at_least=1 - 1e-9)


def test_the_induction_model_by_hand() -> None:
    """One pair and the asked item: x0 l0 x0, all of one class; label 0 of 2."""
    batch = IclBatch(torch.empty(1, 3, 0), torch.tensor([[5, 5]]), torch.tensor([[0, 0]]))
    b, a, r = 0.7, 1.3, 2.1
    e = torch.tensor(b).double().exp()
    match = torch.stack([torch.ones(()).double(), e / (e + 1), 2 / (e + 2)])
    p = (a * match).softmax(0)[1]
    expected = torch.stack([r * p, 0 * p]).softmax(0)
    torch.testing.assert_close(model(b, a, r, num_labels=2).probs(batch)[0], expected)


@pytest.mark.paper(KEY)
def test_the_gradient_is_exact(evidence: Evidence) -> None:
    batch = IclData(num_classes=20, num_labels=5, pairs=6, burst=2, width=1).in_context(40, 2)
    worst = 0.0
    for seed in range(5):
        gen = torch.Generator().manual_seed(seed)
        logits_3 = 2 * torch.randn(3, generator=gen, dtype=torch.float64)
        wanted = torch.func.grad(lambda x: InductionModel(x, 5).loss(batch))(logits_3)
        found = InductionModel(logits_3, 5).gradient(batch)
        assert wanted.abs().min() > 1e-5
        worst = max(worst, float((found - wanted).abs().max()))
    evidence("(c) written gradient less autograd's, largest of 5 draws", measured=worst,
             at_most=1e-6)  # fmt: skip


@pytest.mark.paper(KEY)
def test_learning_of_three_nested_logits_is_abrupt(evidence: Evidence) -> None:
    """From zero logits the loss stays, then falls at once; later, if bursts are smaller."""
    data, halved = IclData(num_classes=20, num_labels=8, width=1), {}
    for burst in (4, 2):
        _, losses = model(0, 0, 0, num_labels=8).descend(
            data.in_context(100, burst), 1500, rate=0.05
        )
        drops = losses[:-1] - losses[1:]
        assert (drops > 0).all()
        halved[burst] = int((losses < losses[0] / 2).nonzero()[0])
        if burst == 2:
            evidence("largest fall of the loss in a step over the first one, B=2",
                     measured=drops.max() / drops[0], at_least=20)  # fmt: skip
            evidence("share of the fall that is done after half the steps, B=2",
                     measured=(losses[0] - losses[750]) / (losses[0] - losses[-1]),
                     at_most=0.15)  # fmt: skip
    evidence("steps until half the loss, B=2 over B=4", measured=halved[2] / halved[4],
             at_least=1.5)  # fmt: skip


def test_progress_measures_of_wired_networks() -> None:
    """Previous-token attention by position alone, then uniform attention, and no answer."""
    data = IclData(num_classes=40, num_labels=8, pairs=8, burst=4)
    net, batch = IclNetwork(data), data.in_context(20)
    with torch.no_grad():
        for weight in net.parameters():
            weight.zero_()
        first: Any = net.layers[0]
        shift = torch.eye(17).roll(-1, 1)
        first.q.weight[:17, :17] = 100 * shift.mT
        first.k.weight[:17, :17] = torch.eye(17)
    item_label, target_label, context_label = _measures(net, batch)
    assert item_label == pytest.approx(1)
    assert target_label == pytest.approx(4 / 17)
    assert context_label == pytest.approx(2 / 8)


@pytest.mark.slow
@pytest.mark.paper(KEY)
def test_bursty_data_of_many_classes_are_learnt_in_context(evidence: Evidence) -> None:
    seen = icl_bench(IclData(num_classes=1024, burst=4), num_steps=500, every=25)
    evidence("(d) B=4, K=1024: accuracy on classes never shown", measured=seen.in_context_S[-1],
             at_least=0.8)  # fmt: skip
    evidence("B=4: on trained classes with swapped labels", measured=seen.swapped_S[-1],
             at_least=0.8)  # fmt: skip
    evidence("B=4: on trained classes without context (chance 0.125)",
             measured=seen.in_weights_S[-1], at_most=0.2)  # fmt: skip
    evidence("B=4: attention of the asked item to labels of its class, at the end",
             measured=seen.target_label_S[-1], at_least=0.5)  # fmt: skip
    evidence("B=4: the same before training", measured=seen.target_label_S[0], at_most=0.35)
    evidence("B=4: probability of labels of the context, at the end",
             measured=seen.context_label_S[-1], at_least=0.95)  # fmt: skip


@pytest.mark.paper(KEY)
def test_data_of_few_classes_without_bursts_are_learnt_in_weights(evidence: Evidence) -> None:
    seen = icl_bench(IclData(num_classes=32, burst=0), num_steps=200, every=100)
    evidence("(d) B=0, K=32: accuracy on trained classes without context",
             measured=seen.in_weights_S[-1], at_least=0.9)  # fmt: skip
    evidence("B=0: on classes never shown (chance 0.125)", measured=seen.in_context_S[-1],
             at_most=0.2)  # fmt: skip


def test_bad_requests_are_refused() -> None:
    for wrong in ({"burst": 3}, {"burst": -1}, {"num_classes": 8}, {"num_labels": 1}):
        with pytest.raises(InputError, match="more classes than pairs"):
            IclData(**wrong)
    with pytest.raises(InputError, match="at most 8 classes"):
        IclData().in_context(1, burst=0)
    with pytest.raises(InputError, match="below 3"):
        model(0, 0, 0, num_labels=3).probs(contexts(2, 4))
    with pytest.raises(InputError, match="three finite"):
        InductionModel(torch.tensor([0.0, torch.inf, 0.0]), 3)
    with pytest.raises(InputError, match="at least 1"):
        icl_bench(IclData(), num_steps=0)
