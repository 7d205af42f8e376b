from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from actkit.core.errors import InputError
from actkit.data import text
from actkit.model import Model
from actkit.opening.checkpoints import Checkpoints
from actkit.read.spectra.alpha_req import alpha_req
from actkit.read.spectra.rankme import rankme
from actkit.read.training.spectral_phases import SpectralPhases, bigram_agreement, spectral_phases
from actkit.read.training.spectral_phases._phases import phases_of
from tests._evidence import Evidence
from tests.contract import acts
from tests.core import tiny

KEY = "tracing-representation-geometry-language"
ROWS, WIDTH, WORDS = 200, 8, 40


class Bottleneck(nn.Module):
    """Free features of each sample, and a softmax over many more words than their width."""

    def __init__(self, gen: torch.Generator) -> None:
        super().__init__()
        self.features = nn.Embedding(ROWS, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        for weight in (self.features.weight, self.head.weight):
            nn.init.normal_(weight, std=0.1, generator=gen)  # larger features hardly move

    def forward(self, index_N: Tensor) -> Tensor:
        logits_NV: Tensor = self.head(self.features(index_N))
        return logits_NV


def toy(seed: int, power: float) -> SpectralPhases:
    """Train on labels whose words have frequencies i^-power."""
    gen = torch.Generator().manual_seed(seed)
    frequency_V = torch.arange(1, WORDS + 1).double() ** -power
    labels_N = torch.multinomial(frequency_V, ROWS, replacement=True, generator=gen)
    index_N = torch.arange(ROWS)

    def training() -> Iterator[tuple[int, nn.Module]]:
        with torch.random.fork_rng():
            net = Bottleneck(gen)
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        for step in range(2001):
            if step % (10 if step < 100 else 100) == 0:  # the warm-up is short
                yield step, net
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(net(index_N), labels_N))
            optimizer.step()

    def accuracy(model: Model) -> float:
        predicted_N = model.run((index_N,)).output.argmax(-1)
        return float((predicted_N == labels_N).double().mean())

    return spectral_phases(
        Checkpoints(training),
        [(index_N,)],
        "features:out",
        window=(1, WIDTH),
        measures={"accuracy": accuracy},
    )


@pytest.mark.paper(KEY)
@pytest.mark.parametrize("seed", range(3))
def test_skewed_labels_and_a_bottleneck_give_the_phases(seed: int, evidence: Evidence) -> None:
    skewed, uniform = toy(seed, 1.5), toy(seed, 0)
    ranks_C = skewed.rankme_C
    low = int(ranks_C.argmin())
    evidence(f"RankMe's dip, share of the start, seed {seed}",
             measured=1 - ranks_C[low] / ranks_C[0], at_least=0.1)  # fmt: skip
    evidence(f"rebound, share of the lowest, seed {seed}",
             measured=ranks_C[low:].max() / ranks_C[low] - 1, at_least=0.05)  # fmt: skip
    evidence(f"dip with uniform labels, seed {seed}",
             measured=1 - uniform.rankme_C.min() / uniform.rankme_C[0], at_most=0.04)  # fmt: skip
    names = [phase.name for phase in skewed.phases]
    assert names[:2] == ["warm-up", "entropy-seeking"]
    assert skewed.beside["accuracy"][0] < 0.3 and skewed.beside["accuracy"][-1] == 1
    assert skewed.enough_rows and (skewed.num_rows, skewed.min_rows) == (ROWS, 4 * WIDTH)


def test_series_are_rankme_and_alpha_of_each_checkpoint() -> None:
    nets = [nn.Sequential(nn.Linear(5, 30)) for _ in range(3)]
    given = acts(90, 5, dtype=torch.float32)
    found = spectral_phases(Checkpoints(nets), [given], "0:out", window=(2, 5))
    assert found.steps == (0, 1, 2)
    for i, net in enumerate(nets):
        acts_ND = net(given)
        assert float(found.rankme_C[i]) == pytest.approx(rankme(acts_ND).value)
        alpha = alpha_req(acts_ND, window=(2, 5)).alpha
        assert float(found.alpha_C[i]) == pytest.approx(alpha)


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_one_row_stands_for_a_text(pool: Literal["last", "mean"]) -> None:
    model = tiny.model()
    texts = [f"w{i} w{2 * i % 87 + 1} w{7 * i % 83 + 1} " * (1 + i % 3) for i in range(1, 30)]
    found = spectral_phases(
        Checkpoints([model, model]), texts, "resid_post.1", pool=pool, window=(1, 9)
    )
    rows = []
    for prompt in texts:
        acts_TD = model.run(prompt, record="resid_post.1")["resid_post.1"][0]
        rows.append(acts_TD[-1] if pool == "last" else acts_TD.mean(0))
    expected = rankme(torch.stack(rows)).value
    assert found.rankme_C.tolist() == pytest.approx([expected, expected], rel=1e-4)
    assert [phase.name for phase in found.phases] == ["steady"] and not found.enough_rows


def test_phases_of_a_planted_series() -> None:
    ranks_C = torch.tensor([50, 40, 20, 20.1, 30, 60, 59.5, 61, 45, 30, 29.9, 34, 36.0])
    alpha_C = torch.tensor([1, 1.2, 2, 2, 1.5, 1, 1, 1, 1.4, 2, 2, 1.8, 1.7])
    found = phases_of(range(0, 130, 10), ranks_C, alpha_C)
    assert [(p.name, p.first, p.last) for p in found] == [
        ("warm-up", 0, 20),
        ("entropy-seeking", 20, 70),
        ("compression-seeking", 70, 100),
        ("entropy-seeking", 100, 120),
    ]
    assert found[0].change == pytest.approx(20 / 50 - 1)
    falling = phases_of(range(0, 130, 10), ranks_C, -alpha_C)
    assert [p.name for p in falling][2] == "falling"
    coarse = phases_of(range(0, 130, 10), ranks_C, alpha_C, min_change=0.3)
    assert [p.name for p in coarse] == ["warm-up", "entropy-seeking", "compression-seeking"]


def test_every_extreme_of_a_zigzag_is_a_turn() -> None:
    found = phases_of([0, 1, 2, 3, 4], torch.tensor([10.0, 5, 8, 4, 9]), torch.ones(5))
    assert [(p.first, p.last) for p in found] == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_training_that_starts_by_rising_has_no_warm_up() -> None:
    found = phases_of([0, 1, 2], torch.tensor([2.0, 3.0, 4.0]), torch.ones(3))
    assert [(p.name, p.first, p.last) for p in found] == [("entropy-seeking", 0, 2)]


def test_bigrams_are_compared_token_by_token() -> None:
    model = tiny.model()
    texts, corpus = ["w1 w2 w3 w1 w2", "w5 w1 w2"], ["w1 w2 w1 w3", "w2 w3 w1 w2"]
    pairs = [(1, 2), (2, 3), (3, 1), (1, 2), (5, 1), (1, 2)]
    counted = [2 / 3, 1 / 2, 1, 2 / 3, 0, 2 / 3]  # w1 is followed 3 times, by w2 twice
    own = []
    for prompt in texts:
        ids = [int(word[1:]) for word in prompt.split()]
        logits = model.run(prompt, logits=True).logits[0].softmax(-1)
        own += [float(logits[t, ids[t + 1]]) for t in range(len(ids) - 1)]
    assert len(own) == len(pairs)
    expected = spearmanr(own, counted).statistic
    assert bigram_agreement(model, texts, corpus) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(InputError, match="got 0 pairs"):
        bigram_agreement(model, ["w1"], corpus)


@pytest.mark.paper(KEY)
def test_smollm2_knows_bigrams_better_than_an_untrained_network(
    smollm2: Model, evidence: Evidence
) -> None:
    paragraphs = text("austen", 400)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: Any = type(smollm2.module)
        untrained = Model(network(smollm2.module.config).eval(), smollm2.tokenizer)
    probes = [p for p in paragraphs[:40] if 100 < len(p) < 300][:5]
    for name, model, bound in (
        ("SmolLM2", smollm2, {"at_least": 0.3}),
        ("control: untrained", untrained, {"at_most": 0.2}),
    ):
        evidence(f"Spearman's correlation with bigram counts, {name}",
                 measured=bigram_agreement(model, probes, paragraphs), **bound)  # fmt: skip


def test_bad_input_is_refused() -> None:
    ones = torch.ones(3)
    for steps, ranks_C, alpha_C, change in (
        ([0, 1], ones, ones, 0.1),
        ([0], ones[:1], ones[:1], 0.1),
        ([0, 1, 2], ones, ones, 0.0),
        ([0, 1, 2], ones * np.nan, ones, 0.1),
        ([0, 1, 2], ones * 0, ones, 0.1),
    ):
        with pytest.raises(InputError):
            phases_of(steps, ranks_C, alpha_C, change)
    nets = [nn.Sequential(nn.Linear(5, width)) for width in (30, 31)]
    data = [acts(60, 5, dtype=torch.float32)]
    with pytest.raises(InputError, match=r"share their width, got \[30, 31\] at 0:out"):
        spectral_phases(Checkpoints(nets), data, "0:out", window=(1, 5))
    with pytest.raises(InputError, match="at least 2"):
        spectral_phases(Checkpoints(nets[:1]), data, "0:out", window=(1, 5))
    with pytest.raises(InputError, match="pool must be"):
        spectral_phases(Checkpoints(nets), data, "0:out", pool="max")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 3 eigenvalues"):
        spectral_phases(Checkpoints(nets[:1]), data, "0:out")
