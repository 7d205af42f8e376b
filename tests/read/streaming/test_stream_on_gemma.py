"""How Gemma-3-270M's stream moves from block to block, beside what SmolLM2's tests claim.

A bound that holds for SmolLM2 and not for Gemma is named in the docstring, and what was measured
is pinned instead. Sites lie as deep, of 18 blocks, as those of SmolLM2 do, of 30.
"""

import pytest
import torch

import actkit as ak
from actkit.model import Model
from actkit.opening.untrained import untrained
from actkit.read.network.local_linearity import local_linearity
from actkit.read.streaming.layer_similarity import LayerSimilarity
from actkit.read.streaming.stream_dynamics import StreamDynamics
from actkit.read.streaming.voids import STREAM, Voids, voids_by_phase
from actkit.read.training.spectral_phases import bigram_agreement
from tests.read.network.test_local_linearity import TEXTS
from tests.read.streaming.test_stream_dynamics_on_smollm2 import PATH, acceleration, pushed
from tests.read.streaming.test_voids_on_smollm2 import ALPHAS, SHARES

MASSIVE = (163, 400)
"""The units whose activations at first tokens are massive, and large at others."""


@pytest.fixture(scope="module")
def drawn(gemma: Model) -> Model:
    """The same network with random weights."""
    return untrained(gemma)


def test_units_go_on_and_speed_up(gemma: Model, drawn: Model) -> None:
    """Does not hold on Gemma: a unit's correlation with itself at the next layer is .8 (here .74).

    It is .91 in the untrained network, so training lowers it. And what enters the first block is
    not lost in it (.76 where SmolLM2 has at most .2): the embeddings come in times sqrt(640).
    """
    tokens = gemma.tokenizer(" ".join(ak.data.text(num_samples=12)))["input_ids"][:167]
    reading = StreamDynamics(leave_out=MASSIVE)
    found = gemma.observe([tokens], {PATH: [reading]})[PATH][0].result()
    control = drawn.observe([tokens], {PATH: [reading]})[PATH][0].result()
    assert found.num_rows == 166
    assert float(found.correlation_PD.nanmean()) == pytest.approx(0.740, abs=0.01)
    assert float(control.correlation_PD.nanmean()) == pytest.approx(0.905, abs=0.02)
    assert found.control_PD.nanmean().abs() <= 0.05
    assert float(found.correlation_PD[0].nanmean()) == pytest.approx(0.762, abs=0.01)
    assert acceleration(found) >= 2
    assert acceleration(found) == pytest.approx(8.8, rel=0.02)
    assert acceleration(control) <= 1.5
    assert found.density_S[-1] - found.density_S[0] >= 0.5
    assert found.rotations_D[found.rotations_D.isfinite()].mean() >= 0.5


def test_a_push_outgrows_the_stream(gemma: Model) -> None:
    """Does not hold on Gemma: the stream grows faster than a push, at most .95 of it is left.

    Here 1.62 times the share in blocks 2 to 5 and 1.30 at block 16; random pushes grow more.
    """
    found = pushed(gemma, ["resid_post.5", "resid_post.16"])
    shares = found.ratio_K / found.growth_K
    random = found.random_RK.mean(0) / found.growth_K
    assert shares.tolist() == pytest.approx([1.62, 1.30], abs=0.02)
    assert (random > shares).all()


def test_blocks_far_apart_are_less_alike_but_not_in_strict_order(gemma: Model) -> None:
    """Does not hold on Gemma: similarity falls with each step away from a block, to either side.

    It falls with each step down. Up from blocks 1 and 6, block 16 is the more alike than block 11.
    """
    names = ("resid_post.1", "resid_post.6", "resid_post.11", "resid_post.16")
    fed = gemma.observe(ak.data.text(num_samples=8), {names: [LayerSimilarity(unbiased=True)]})
    cka_LL = fed[names][0].result().cka_LL
    down = cka_LL.diff(dim=0)
    assert (down[torch.ones(3, 4).triu(1) > 0] > 0).all()
    assert cka_LL[0, 1:].tolist() == pytest.approx([0.156, 0.092, 0.103], abs=0.003)
    assert cka_LL[1, 2:].tolist() == pytest.approx([0.116, 0.136], abs=0.003)
    assert (cka_LL > 0.05).all()


def test_every_second_middle_layer_is_void(gemma: Model) -> None:
    """Does not hold on Gemma: of the layers at SmolLM2's 3 to 18 none is active for most tokens.

    Shares of active layers fall with alpha as there (SHARES), but only to .456 where it has .225.
    """
    tokens = gemma.tokenizer(" ".join(ak.data.text(num_samples=12)))["input_ids"][:120]
    found = gemma.observe([tokens], {STREAM: [Voids(alpha=ALPHAS)]})[STREAM][0].result()
    assert found.num_rows == 119
    assert float(found.active_A[0]) == pytest.approx(SHARES[0], abs=0.05)
    assert found.active_A[1:].tolist() == pytest.approx([0.825, 0.632, 0.456], abs=0.01)
    middle = found.active_AL[-1, 2:12]
    assert (middle <= 0.1).nonzero()[:, 0].tolist() == [0, 2, 4, 6, 7]
    assert float(middle.max()) == pytest.approx(0.899, abs=0.02)


def test_prompt_and_written_tokens_have_as_many_void_layers(gemma: Model) -> None:
    """Does not hold on Gemma: .23 of the layers are active at alpha .8 (here .487 and .463)."""
    prompts = ["Once upon a time there was a small", "The capital of France is"]
    found = voids_by_phase(gemma, prompts, alpha=0.8, max_new_tokens=16)
    assert float(found["prompt"].active_A[0]) == pytest.approx(0.487, abs=0.02)
    assert float(found["generated"].active_A[0]) == pytest.approx(0.463, abs=0.05)
    assert found["generated"].num_rows == 2 * 15


@pytest.mark.slow
def test_blocks_are_linear_only_for_moves_25_times_as_small(gemma: Model) -> None:
    """Does not hold on Gemma: at a move of 5 % of a state's length the error is at most .1.

    Units 163 and 400 make up most of the length, so a random move of 5 % drowns what the others
    hold: the error is .35 or more in all blocks but the first. It is below .1 at a move of .2 %.
    """
    stages = [(f"resid_pre.{n}", f"resid_post.{n}") for n in range(18)]
    found = local_linearity(gemma, TEXTS, stages, (0.0005, 0.002, 0.05))
    assert found.error_SE[:, 1].max() <= 0.1
    assert (found.error_SE[:, 1] > 2 * found.error_SE[:, 0]).all(), "the rest is of second order"
    assert float(found.error_SE[0, 2]) == pytest.approx(0.060, abs=0.005)
    assert float(found.error_SE[1:, 2].min()) == pytest.approx(0.351, abs=0.02)


@pytest.mark.slow
def test_it_knows_bigrams_better_than_an_untrained_network(gemma: Model, drawn: Model) -> None:
    paragraphs = ak.data.text("austen", 400)
    probes = [p for p in paragraphs[:40] if 100 < len(p) < 300][:5]
    assert bigram_agreement(gemma, probes, paragraphs) >= 0.3
    assert bigram_agreement(drawn, probes, paragraphs) <= 0.2
