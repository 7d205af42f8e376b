"""Patching, attribution and edits of facts in Gemma-3-270M, beside what SmolLM2's tests claim.

Norms stand between its heads, its MLPs and its stream, and norms of queries and keys within them:
what takes the stream for a sum of parts is refused. A bound that holds for SmolLM2 and not for
Gemma is named in the docstring, and what was measured is pinned instead.

Shapes: B rows, V variants, T tokens, L layers, D width.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

import actkit as ak
from actkit.core.errors import ActkitError
from actkit.model import Model
from actkit.trace import Part, Scores, Task, Trial, tasks
from actkit.trace._ablations import means, removal
from actkit.trace._in_context import repeated
from actkit.trace._parts import as_parts
from actkit.trace._robustness import Choice, robustness
from actkit.trace.circuits.circuit_overlap import circuit_overlap
from actkit.trace.edges.acdc import ACDC
from actkit.trace.edges.eap import EAP
from actkit.trace.heads.component_contrib import component_contrib
from actkit.trace.heads.factual_recall import factual_recall
from actkit.trace.heads.sparse_attention_decomposition import sparse_attention_decomposition
from actkit.trace.interventions.rome import Rome
from actkit.trace.interventions.rome._facts import checked
from actkit.trace.nodes.answer_heads import AnswerHeads
from actkit.trace.nodes.attribution_patching import AttributionPatching
from actkit.trace.nodes.causal_trace import CausalTrace
from actkit.trace.nodes.cna import CNA
from actkit.trace.nodes.patch import Patch
from actkit.trace.nodes.path_patch import path_patch
from actkit.trace.nodes.relp import RelP
from actkit.trace.nodes.relp._relevance import RULES
from actkit.trace.reasoning.minimal_pair_scan import minimal_pair_scan
from actkit.trace.reasoning.minimal_pair_scan._causal_pairs import causal_pairs
from tests.trace import _ioi
from tests.trace.heads.test_component_contrib import random_directions
from tests.trace.interventions.test_rome_on_smollm2 import (
    FACT,
    NEIGHBOURS,
    PARAPHRASES,
    UNRELATED,
    fine_tuned,
)
from tests.trace.interventions.test_subspace_patch_on_smollm2 import effects
from tests.trace.nodes.test_patch_on_smollm2 import limits
from tests.trace.nodes.test_relp_on_smollm2 import correlations, counted, sums
from tests.trace.nodes.test_relp_on_smollm2 import trial as name_mover
from tests.trace.reasoning.test_minimal_pair_scan import spearman

PROMPT, SUBJECT, ANSWER = ["The capital of France is"], [" France"], [" Paris"]
SUMS_OF_PARTS: dict[str, tuple[Callable[[Trial], Any], str]] = {
    "answer_heads": (lambda t: AnswerHeads()(t.model, t), "heads of layer 0 .* must add up"),
    "factual_recall": (
        lambda t: factual_recall(t.model, PROMPT, SUBJECT, ANSWER), "heads of layer 0 .* add up",
    ),
    "component_contrib": (
        lambda t: component_contrib(t.model, PROMPT, random_directions(t.model)),
        "must be linear in it, in layer 0",
    ),
    "eap": (lambda t: EAP()(t.model, t), "a norm or a factor comes between z.0 and"),
    "acdc": (lambda t: ACDC()(t.model, t), "a norm or a factor comes between z.0 and"),
    "cna": (lambda t: CNA(None, "heads")(t.model, t), "sources that add up to attn_out.0"),
    "sparse_attention_decomposition": (
        lambda t: sparse_attention_decomposition(
            t.model, repeated(t.model, num=1), (5, 1), query=60
        ),
        "a bilinear form of the stream, in layer 5 .* norms of queries and keys",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def one_pair(gemma: Model) -> Trial:
    made: Task = tasks.ioi(1)
    return made.on(gemma)


@pytest.mark.parametrize("name", SUMS_OF_PARTS)
def test_what_takes_the_stream_for_a_sum_of_parts_is_refused(one_pair: Trial, name: str) -> None:
    """Their facts of SmolLM2 have no counterpart here."""
    made, said = SUMS_OF_PARTS[name]
    with pytest.raises(ActkitError, match=said):
        made(one_pair)


@pytest.mark.parametrize("bundled", ["ioi", "capitals"])
def test_all_of_the_stream_is_everything_and_nothing_is_nothing(gemma: Model, bundled: str) -> None:
    task = tasks.ioi(3) if bundled == "ioi" else tasks.capitals(3)
    nothing, stream, end = limits(task.on(gemma), "resid_post.17")
    assert nothing == pytest.approx(0, abs=1e-6)
    assert stream == pytest.approx(1, abs=1e-4)
    assert end == pytest.approx(1, abs=1e-6)


def test_no_sender_changes_nothing_and_all_senders_everything(gemma: Model) -> None:
    trial = tasks.ioi(2).on(gemma)
    assert path_patch(gemma, trial, []).abs().max() <= 1e-6
    lost = path_patch(gemma, trial, [Part(site.name) for site in gemma.sites("z.*")])
    full = trial.clean_values - trial.corrupt_values
    assert ((lost - full) / full).abs().max() <= 1e-4


def test_relevance_is_conserved_and_values_stay(gemma: Model) -> None:
    """Through norms on both sides of attention and MLP, and those of queries and keys."""
    task = name_mover(gemma, 0)
    layers = (0, 6, 12, 17)
    ruled, logits = sums(task, layers, [*RULES])
    plain, _ = sums(task, layers, ())
    assert ruled == pytest.approx(4 * [1.0], abs=1e-3)
    assert max(abs(share - 1) for share in plain) >= 0.3
    bare = gemma.run(task.clean, logits=True).logits
    assert bare is not None
    assert (logits - bare).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", [RelP, AttributionPatching])
def test_two_forward_and_one_backward_pass(
    gemma: Model, kind: type[RelP | AttributionPatching]
) -> None:
    task = name_mover(gemma, 1)
    task.check()
    with counted(gemma) as passes:
        kind("mlp")(gemma, task)
    assert passes == {"forward": 2, "backward": 1}


@pytest.mark.slow
def test_relevance_is_near_to_patching_and_gradients_are_not(gemma: Model) -> None:
    """Attribution patching says the opposite of patching for MLPs (r = -.80), RelP the same."""
    measured = {"mlp": (0.966, -0.802), "resid": (0.886, 0.034)}
    for name, expected in measured.items():
        found = torch.tensor([correlations(name_mover(gemma, row), name) for row in range(2)])
        relp, plain = found.mean(0).tolist()
        assert relp >= 0.8
        assert relp - plain >= 0.01
        assert (relp, plain) == pytest.approx(expected, abs=0.02)


@pytest.mark.slow
def test_noise_says_something_else_than_replacing(gemma: Model) -> None:
    task, ways = tasks.capitals(2), [Choice("replace"), Choice("noise")]
    heads = robustness(gemma, task, "heads", ways)
    assert 0.0 <= heads.correlations[0, 1] <= 0.99
    assert float(heads.correlations[0, 1]) == pytest.approx(0.546, abs=0.03)
    first, again = (robustness(gemma, task, "attns", ways, seed=s).scores for s in (0, 1))
    assert torch.equal(first[0], again[0])
    assert (first - again)[1].abs().max() >= 0.01


@pytest.fixture(scope="module")
def ioi_map(gemma: Model) -> Scores:
    """Score all heads by patching, on two of the 56 pairs."""
    return Patch("heads")(gemma, _ioi.pairs(2))


@pytest.mark.slow
def test_the_heads_that_patching_ranks_carry_the_answer(gemma: Model, ioi_map: Scores) -> None:
    """Three of 72, knocked out by their mean over the ABC prompts of all pairs; eight pairs."""
    assert ioi_map.ranked()[:3] == [(11, 3), (13, 3), (15, 1)]
    heads, rng = as_parts("heads"), random.Random(0)
    every = [(layer, head) for layer in range(18) for head in range(4)]
    sets = [ioi_map.ranked()[:3]]
    sets += [[*rng.sample(every, 3)] for _ in range(5)]
    values = means(_ioi.pairs().on(gemma), [site.name for site in heads.sites(gemma)])
    trial = _ioi.pairs(8).on(gemma)
    kept = trial.sweep([removal(gemma, heads, nodes, values) for nodes in sets], "clean")
    lost = 1 - kept.mean(-1) / trial.clean_values.mean()
    assert lost[0] >= 0.5
    assert float(lost[0]) == pytest.approx(1.36, abs=0.03)
    assert lost[1:].mean() <= 0.15


@pytest.mark.slow
def test_two_tasks_share_more_heads_than_chance(gemma: Model, ioi_map: Scores) -> None:
    """Of five heads, as many of 72 as 20 of SmolLM2's 270."""
    objects = Patch("heads")(gemma, tasks.colored_objects(2))
    found = circuit_overlap(ioi_map.ranked()[:5], objects.ranked()[:5], 72)
    assert found.chance is not None
    assert found.overall >= 0.1
    assert found.overall / found.chance >= 2
    assert sorted(found.shared) == [(11, 2), (11, 3), (13, 3)]


@pytest.mark.slow
def test_a_capital_is_read_at_the_last_token_of_its_country(gemma: Model) -> None:
    """Does not hold on Gemma: the noise takes .3 of the capital's probability, the sum is 4.

    It gives " Seoul" .161 where SmolLM2 gives more than .3, and all of that is lost and restored.
    """
    clean, other = (
        [f"The capital city of {country} is called"] for country in ("South Korea", "Saudi Arabia")
    )
    task = Task(clean, other, [" Seoul"], metric="probability")
    scores = CausalTrace([5, 6], draws=3)(gemma, task)
    assert scores.facts["clean"] == pytest.approx(0.161, abs=0.003)
    assert scores.facts["corrupted"] <= 0.01
    effects_T = scores.values.sum(0)
    assert [word.strip() for word in scores.names[1][5:]] == ["South", "Korea", "is", "called"]
    assert float(effects_T[6]) == pytest.approx(1.85, abs=0.05)
    assert effects_T[6] / effects_T[[0, 1, 2, 3, 4, 5, 7]].max() >= 4


@pytest.mark.slow
def test_a_capital_moves_and_the_rest_stays(gemma: Model) -> None:
    """Layer 7 of 18, as deep as SmolLM2's 12 of 30; one of four neighbours keeps its capital."""
    rome = Rome(7, num_prefixes=2, steps=10).fit(gemma, ak.data.text(num_samples=25))
    edit = rome.edit(gemma, FACT)

    def check(modules: Any) -> Any:
        return checked(gemma, modules, FACT, PARAPHRASES, NEIGHBOURS, UNRELATED)

    edited = check(edit.applied(gemma))
    assert edited.probability >= 0.9
    tuned = fine_tuned(gemma, edit.path, edited.probability)
    gradient = check(gemma.replaced({edit.path: tuned}))
    assert edited.kl / gradient.kl <= 0.9
    assert edited.kl / gradient.kl == pytest.approx(0.23, abs=0.1)
    assert edited.paraphrase >= 0.5
    assert (edited.neighbourhood, gradient.neighbourhood) == (0.25, 0.0)


@pytest.mark.slow
def test_head_scores_agree_between_pairs(gemma: Model) -> None:
    """Does not hold on Gemma: early blocks pay twice as much to the connective (here .93)."""
    task = causal_pairs()
    trial, found = task.on(gemma), minimal_pair_scan(gemma, task, " because")
    paid_L = found.delimiter_by_layer
    assert float(paid_L[:3].mean() / paid_L[3:].mean()) == pytest.approx(0.93, abs=0.05)
    assert found.patching.ranked()[0] == (15, 0)
    everything = [
        ak.swap(site.name, trial.record("clean", [site.name]))
        for point in ("z.*", "mlp_out.*")
        for site in gemma.sites(point)
    ]
    shares = trial.recovery(trial.sweep([everything, []])).tolist()
    assert shares == pytest.approx([1, 0], abs=1e-4)

    turned = Task(task.corrupt, task.clean, task.answers, metric="log probability").on(gemma)
    z = turned.source("clean", [site.name for site in gemma.sites("z.*")])
    noised_VB = turned.sweep(
        [[ak.swap(name, z, ak.Where(heads=head))] for name in z for head in range(4)]
    )
    gained_VB = found.patched_VB - trial.corrupt_values
    lost_VB = noised_VB - trial.clean_values
    gap_B = trial.clean_values - trial.corrupt_values
    assert spearman(gained_VB, gap_B) >= 0.3
    swapped = []
    for seed in range(20):
        turn_B = torch.rand(8, generator=torch.Generator().manual_seed(seed)) < 0.5
        mixed_VB = gained_VB.where(~turn_B, lost_VB)
        swapped.append(spearman(mixed_VB, gap_B * (1 - 2 * turn_B.float())))
    assert abs(sum(swapped) / 20) <= 0.15


@pytest.mark.slow
def test_a_direction_moves_facts_that_the_whole_mlp_does_not(gemma: Model) -> None:
    """Does not hold on Gemma: a trained direction has an effect of .3 (here .27, at layer 4)."""
    found = effects(gemma, "mlp_hidden.4", ak.Where(tokens=-2))
    direction, row, null, full, chance_effect = found
    assert direction == pytest.approx(0.268, abs=0.03)
    assert full <= 0.15
    assert row / direction <= 0.75
    assert abs(null) <= 1e-3
    assert abs(chance_effect) <= 0.05
