"""The claims of the paper on perplexity-aware sparsity, on SmolLM2-135M-Instruct."""

from collections.abc import Iterator
from itertools import pairwise

import pytest

from actkit.anatomy.mlp_weights import neuron_weights
from actkit.data import chunks, text
from actkit.model import Model
from actkit.read.network.ppl_sparsity import PplSparsity, cett, fat, ppl_sparsity, topk
from tests._evidence import Evidence

NUM, LENGTH = 4, 128


@pytest.fixture(scope="module")
def texts(smollm2: Model) -> list[list[int]]:
    """512 tokens of an essay."""
    blocks: Iterator[list[int]] = chunks(text("thoreau"), smollm2.tokenizer, LENGTH)
    return [next(blocks) for _ in range(NUM)]


@pytest.fixture(scope="module")
def found(smollm2: Model, texts: list[list[int]]) -> PplSparsity:
    return ppl_sparsity(smollm2, texts)


@pytest.mark.slow
@pytest.mark.paper("sparsing-law")
def test_one_percent_of_perplexity_saves_a_third_of_the_neurons(
    smollm2: Model, texts: list[list[int]], found: PplSparsity, evidence: Evidence
) -> None:
    evidence("perplexity ratio of the sparse model", measured=found.ratio, equals=1.01,
             tolerance=0.001)  # fmt: skip
    evidence("passes under a gate", measured=found.num_evaluations, at_most=12)
    evidence("activation ratio, SiLU, 512 tokens", measured=found.activation_ratio,
             at_least=0.5, at_most=0.75)  # fmt: skip
    sites = [f"mlp_hidden.{i}" for i in (2, 15, 28)]
    rec, worst, steps = smollm2.run(texts[:2], record=sites), 0.0, []
    for site in sites:
        out_HD = neuron_weights(smollm2, smollm2.sites(site)[0])
        acts_NH, rows = rec.flat(site)
        acts_NH = acts_NH[rows.position > 0]
        levels = [found.cutoffs[site] * 1.5**k for k in range(-3, 8)]
        values = [cett(acts_NH, out_HD, level) for level in levels]
        worst = max(worst, abs(values[3] / found.strength - 1))
        steps += [after - before for before, after in pairwise(values)]
    evidence("smallest step of the CETT as the threshold rises", measured=min(steps), at_least=0)
    evidence("CETT of three layers on half of the text against the found one (share)",
             measured=worst, at_most=0.1)  # fmt: skip


@pytest.mark.slow
@pytest.mark.paper("sparsing-law")
@pytest.mark.parametrize("baseline", [fat, topk], ids=lambda m: m.__name__)
def test_baselines_need_more_neurons_for_the_same_perplexity(
    smollm2: Model, texts: list[list[int]], found: PplSparsity, baseline: object, evidence: Evidence
) -> None:
    assert callable(baseline)
    other: PplSparsity = baseline(smollm2, texts)
    name = getattr(baseline, "__name__", "")
    evidence(f"perplexity ratio under {name}", measured=other.ratio, equals=1.01, tolerance=0.002)
    evidence(f"activation ratio of {name} beyond that of CETT",
             measured=other.activation_ratio - found.activation_ratio, at_least=0.05)  # fmt: skip
