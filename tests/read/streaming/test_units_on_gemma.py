"""Gemma-3-270M's neurons, units and spectra, beside what SmolLM2's tests claim.

A bound that holds for SmolLM2 and not for Gemma is named in the docstring, and what was measured
is pinned instead. Blocks of tokens begin with <bos>, without which Gemma was never trained.

Shapes: N neurons, D width.
"""

from collections.abc import Iterator
from itertools import islice

import pytest
import torch

import actkit as ak
from actkit.anatomy.mlp_weights import neuron_weights
from actkit.data import chunks, text
from actkit.model import Model
from actkit.read.codes.sdr import binarise, collisions
from actkit.read.information.big_phi import mean_big_phi
from actkit.read.information.integration import (
    compare_groups,
    integration,
    principal_units,
    span_scores,
)
from actkit.read.network.io_functionality import io_functionality
from actkit.read.network.ppl_sparsity import cett, fat, ppl_sparsity, topk
from actkit.read.training.critical_period import pathway_shares
from tests.read.information.test_integration_on_smollm2 import NUM, statements
from tests.read.network.test_io_functionality import oracle
from tests.read.spectra.test_mp_spectrum_on_smollm2 import spectra


def blocks(model: Model, name: str, num: int) -> list[list[int]]:
    """Return blocks of 128 tokens, <bos> and 127 of a book."""
    cut: Iterator[list[int]] = chunks(text(name, 60), model.tokenizer, 127)
    return [[model.tokenizer.bos_token_id, *block] for block in islice(cut, num)]


def test_structure_of_the_stream_stands_out_from_noise(gemma: Model) -> None:
    """At block 3 of 18, as deep as SmolLM2's block 5."""
    real, shuffled = spectra(gemma, blocks(gemma, "austen", 16), "resid_post.3")
    assert real.num_outliers >= 50
    assert real.num_outliers == pytest.approx(179, abs=5)
    assert real.share_outliers >= 0.5
    assert real.kl >= 0.3
    assert shuffled.num_outliers <= 1
    assert shuffled.kl <= 0.01


def test_neurons_neither_enrich_nor_deplete(gemma: Model) -> None:
    """Does not hold on Gemma: neurons that write what they read early, and against it late.

    All 36,864 have an output orthogonal to their input (|cosine| below .5). The means go from
    .05 in blocks 5 and 6 to -.03 in the last one, of which chance has a spread of .04.
    """
    found = io_functionality(gemma)
    layers = [layer.summary() for layer in found.values()]
    assert [layer["orthogonal_output"] for layer in layers] == 18 * [2048]
    means = torch.tensor([layer["mean_cosine"] for layer in layers])
    early, late = float(means[:9].mean()), float(means[12:].mean())
    assert early == pytest.approx(0.013, abs=0.003)
    assert early - late == pytest.approx(0.021, abs=0.005)
    assert means.argmax() == 6
    assert float(means.max()) == pytest.approx(0.048, abs=0.003)
    # norms stand before and after the MLP, and keep their gains less one
    block = gemma.module.get_submodule("model.layers.6")
    mlp = block.get_submodule("mlp")
    gate, up, down = (mlp.get_parameter(f"{name}_proj.weight") for name in ("gate", "up", "down"))
    before, after = (
        1 + block.get_parameter(f"{side}_feedforward_layernorm.weight").detach()
        for side in ("pre", "post")
    )
    some = oracle(gate[:50], up[:50], down[:, :50], before, after)
    torch.testing.assert_close(found["mlp_gate.6"].cosines_N3[:50], some, atol=1e-5, rtol=1e-4)


def test_codes_are_recognised_under_dropout(gemma: Model) -> None:
    rec = gemma.run(ak.data.text(num_samples=12), record="mlp_hidden.9")
    acts_ND, rows = rec.flat("mlp_hidden.9")
    codes = binarise(acts_ND[rows.position > 0], round(0.05 * acts_ND.shape[1]))
    for num_synapses in (10, 20, 40):
        assert collisions(codes, num_synapses, noise=0.2).match >= 0.99
    found = collisions(codes, 10, noise=0.2)
    assert found.false_match / found.predicted_false_match >= 10
    assert 0.5 <= found.false_match / found.effective_false_match <= 2
    assert found.effective_cells <= 1000 / 1536 * 2048
    assert found.effective_cells == pytest.approx(767, abs=5)


def test_attention_and_mlp_are_both_pathways(gemma: Model) -> None:
    parts = [ak.set("attn_out.3", 0.0), ak.set("mlp_out.3", 0.0)]
    shares = pathway_shares(gemma, "A bird in the hand.", parts)
    assert shares.sum() == pytest.approx(1)
    assert (shares > 0.05).all()
    assert float(shares[0]) == pytest.approx(0.249, abs=0.01)


@pytest.mark.slow
def test_integration_does_not_tell_true_from_altered_statements(gemma: Model) -> None:
    """The null is a result here, as on SmolLM2; span representations do tell them."""
    sequences, labels_N = statements(gemma, "resid_post.9")
    units = principal_units(sequences, 4)
    for scores, p_value in (
        ([integration(u).phi for u in units], 0.196),
        ([mean_big_phi(u[:, :2]) for u in units], 0.955),
    ):
        found = compare_groups(torch.tensor(scores), labels_N)
        assert found.p_value == pytest.approx(p_value, abs=0.1)
        assert found.p_value > 0.05
    pairs = [i // 2 for i in range(2 * NUM)]
    spans = compare_groups(span_scores(sequences, labels_N, pairs), labels_N)
    assert spans.auc >= 0.75
    assert spans.p_value <= 0.01


@pytest.mark.slow
def test_one_percent_of_perplexity_saves_few_neurons(gemma: Model) -> None:
    """Does not hold on Gemma: a third of the neurons is saved (here 18 %, .82 stay active).

    Both baselines need more, as on SmolLM2, but keeping the largest needs only .016 more (.05).
    The CETT on half of the text is off by .107 in the middle layer (at most .1).
    """
    texts = blocks(gemma, "thoreau", 4)
    found = ppl_sparsity(gemma, texts)
    assert found.ratio == pytest.approx(1.01, abs=0.001)
    assert found.num_evaluations <= 12
    assert found.activation_ratio == pytest.approx(0.822, abs=0.005)
    more = []
    for baseline in (fat, topk):
        other = baseline(gemma, texts)
        assert other.ratio == pytest.approx(1.01, abs=0.002)
        more.append(other.activation_ratio - found.activation_ratio)
    assert more == pytest.approx([0.069, 0.016], abs=0.005)

    sites = [f"mlp_hidden.{i}" for i in (1, 9, 17)]
    rec, off = gemma.run(texts[:2], record=sites), {}
    for site in sites:
        out_ND = neuron_weights(gemma, gemma.sites(site)[0])
        acts_TN, rows = rec.flat(site)
        acts_TN = acts_TN[rows.position > 0]
        levels = [found.cutoffs[site] * 1.5**k for k in range(-3, 8)]
        values = [cett(acts_TN, out_ND, level) for level in levels]
        assert values == sorted(values)
        off[site] = abs(values[3] / found.strength - 1)
    assert off.pop("mlp_hidden.9") == pytest.approx(0.107, abs=0.01)
    assert max(off.values()) <= 0.1
