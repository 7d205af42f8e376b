"""Scans of minimal pairs: against statistics by hand, a wired network, and SmolLM2."""

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Task, TaskWarning
from actkit.trace.reasoning.minimal_pair_scan import minimal_pair_scan
from actkit.trace.reasoning.minimal_pair_scan._causal_pairs import CAUSES, causal_pairs
from actkit.worlds.toy_transformer import reader
from tests._evidence import Evidence
from tests.core import tiny

CLEAN = ["w1 w2 w33 w4 w5", "w6 w33 w3 w4", "w8 w2 w9 w33 w7"]
CORRUPT = ["w1 w2 w33 w14 w5", "w6 w33 w13 w4", "w8 w12 w9 w33 w7"]


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def task(m: Model) -> Task:
    sides = [m.run(s, logits=True).logits[:, -1].log_softmax(-1) for s in (CLEAN, CORRUPT)]
    return Task(CLEAN, CORRUPT, (sides[0] - sides[1]).argmax(-1), metric="log probability")


def test_statistics_equal_those_by_hand(m: Model, task: Task) -> None:
    found = minimal_pair_scan(m, task, "w33")
    paid, apart = torch.zeros(2, 3, tiny.LAYERS, tiny.HEADS)
    for b, (clean, corrupt) in enumerate(zip(CLEAN, CORRUPT, strict=True)):
        words, twin = clean.split(), corrupt.split()
        at = words.index("w33")
        first = next(i for i, (x, y) in enumerate(zip(words, twin, strict=True)) if x != y)
        for layer in range(tiny.LAYERS):
            site = f"attn_probs.{layer}"
            p, q = (m.run(text, record=site)[site][0] for text in (clean, corrupt))
            paid[b, layer] = p[:, at + 1 :, at].mean(-1)
            apart[b, layer] = (p - q)[:, first:].abs().sum(-1).mean(-1) / 2
    torch.testing.assert_close(found.delimiter_LH, paid.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.difference_LH, apart.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.delimiter_by_layer, paid.mean((0, 2)), atol=1e-5, rtol=1e-4)


def test_scores_are_denoising_and_lie_in_their_intervals(m: Model, task: Task) -> None:
    found, trial = minimal_pair_scan(m, task, "w33"), task.on(m)
    rec = m.run(CLEAN, record="z.1")
    logits = m.run(CORRUPT, edits=[ak.swap("z.1", rec, ak.Where(heads=4))], logits=True).logits
    value = trial.metric(logits[:, -1:])
    torch.testing.assert_close(found.patched_VB[tiny.HEADS + 4], value, atol=1e-5, rtol=1e-4)
    score = float((value.mean() - trial.corrupt_values.mean()) / trial.gap)
    assert float(found.patching.values[1, 4]) == pytest.approx(score, abs=1e-5)
    inside = (found.low_LH - 1e-6 <= found.patching.values) & (
        found.patching.values <= found.high_LH + 1e-6
    )
    assert inside.all()
    assert (found.high_LH > found.low_LH).all()
    one = minimal_pair_scan(m, task[[0]], "w33")
    torch.testing.assert_close(one.low_LH, one.high_LH)


def test_bad_input_is_refused(m: Model, task: Task) -> None:
    with pytest.raises(InputError, match="sentences of your own need connective="):
        minimal_pair_scan(m, task)
    with pytest.raises(InputError, match=r"needs the connective 5 .* rows \[1, 2\]"):
        minimal_pair_scan(m, task, "w5")
    with pytest.raises(InputError, match="before its last token"):
        minimal_pair_scan(m, task[[0]], "w5")
    with pytest.raises(InputError, match="one token, got 'w1 w2' of 2"):
        minimal_pair_scan(m, task, "w1 w2")
    with pytest.raises(InputError, match="'because' or 'so', got 'but'"):
        minimal_pair_scan(m, "but")  # type: ignore[arg-type]
    turned = Task(CORRUPT, CLEAN, task.answers, metric="log probability")
    with pytest.warns(TaskWarning, match="preferred in 0 of 3 pairs"):
        minimal_pair_scan(m, turned, "w33")


def test_bundled_pairs_differ_in_the_cause_alone() -> None:
    because, so = causal_pairs(), causal_pairs("so")
    assert len(because) == len(so) == len(CAUSES) == 8
    assert because.clean[0] == "Anna got wet because she forgot her"
    assert because.corrupt[0] == "Anna got wet because she painted her"
    assert so.clean[0] == "Anna forgot her umbrella so she got"
    assert so.corrupt[0] == "Anna painted her kitchen so she got"
    assert (because.answers or [""])[0] == " umbrella"
    assert (so.answers or [""])[0] == " wet"


@pytest.mark.paper("causal-interventions-causal-paths")
def test_the_one_head_that_reads_the_cause(evidence: Evidence) -> None:
    """A prompt is cause, connective, effect; only head (1, 2) reads the cause."""
    causes = torch.tensor([[3, 0, 2], [4, 0, 1], [5, 0, 5]])
    twins = torch.tensor([[4, 0, 2], [2, 0, 1], [1, 0, 5]])
    task = Task(causes, twins, causes[:, 0], metric="log probability")
    found = minimal_pair_scan(Model(reader(at=(1, 2))), task, 0)
    scores = found.patching.values.clone()
    evidence("score of the head that reads the cause", measured=scores[1, 2], at_least=0.95)
    scores[1, 2] = 0
    evidence("largest score of the others", measured=scores.abs().max(), at_most=0.05)


@pytest.mark.slow
@pytest.mark.paper("causal-interventions-causal-paths")
def test_head_scores_agree_between_pairs(smollm2: Model, evidence: Evidence) -> None:
    """Pairs whose labels are swapped at random lose the agreement of their halves."""
    task = causal_pairs()
    trial, found = task.on(smollm2), minimal_pair_scan(smollm2, task, " because")
    paid_L = found.delimiter_by_layer
    ratio = paid_L[:3].mean() / paid_L[3:].mean()
    evidence(
        "attention to the connective, first 3 blocks over the rest", measured=ratio, at_least=2
    )
    block = found.patching.ranked()[0][0]
    evidence("block, of 30, of the head that mends most", measured=block, at_least=20)
    everything = [
        ak.swap(site.name, trial.record("clean", [site.name]))
        for point in ("z.*", "mlp_out.*")
        for site in smollm2.sites(point)
    ]
    shares = trial.recovery(trial.sweep([everything, []]))
    evidence("all heads and MLPs patched: recovery", measured=shares[0], equals=1, tolerance=1e-4)
    evidence("nothing patched", measured=shares[1], equals=0, tolerance=1e-4)

    turned = Task(task.corrupt, task.clean, task.answers, metric="log probability").on(smollm2)
    z = turned.source("clean", [site.name for site in smollm2.sites("z.*")])
    noised_VB = turned.sweep(
        [[ak.swap(name, z, ak.Where(heads=head))] for name in z for head in range(9)]
    )
    gained_VB = found.patched_VB - trial.corrupt_values
    lost_VB = noised_VB - trial.clean_values
    gap_B = trial.clean_values - trial.corrupt_values
    halves = spearman(gained_VB, gap_B)
    evidence("Spearman of 270 scores, halves of the pairs", measured=halves, at_least=0.3)
    swapped = []
    for seed in range(20):
        turn_B = torch.rand(8, generator=torch.Generator().manual_seed(seed)) < 0.5
        swapped.append(
            spearman(gained_VB.where(~turn_B, lost_VB), gap_B * (1 - 2 * turn_B.float()))
        )
    mean = torch.tensor(swapped).mean().abs()
    evidence("|mean| of it, labels swapped at random 20 times", measured=mean, at_most=0.15)


def spearman(effects_VB: Tensor, gap_B: Tensor) -> float:
    """Return the correlation of scores between the first and the second half of the pairs."""
    halves = [effects_VB[:, h].mean(-1) / gap_B[h].mean() for h in (slice(4), slice(4, 8))]
    return float(spearmanr(*(h.numpy() for h in halves)).statistic)
