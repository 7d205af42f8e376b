"""Overlap of circuits: by counting, by chance, and on two tasks that share planted heads."""

import random
from typing import Literal

import pytest
import torch

from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Part, Scores
from actkit.trace._attention_edits import set_attention
from actkit.trace._head_classes import head_classes
from actkit.trace.circuits.circuit_overlap import chance_overlap, circuit_overlap, rank_correlation
from actkit.trace.nodes.path_patch import PathPatch
from tests._evidence import Evidence
from tests.trace import _ioi, _shared_circuit
from tests.trace._shared_circuit import MOVERS, OTHERS, POINTERS, shared

EDGE = 0.05
"""Share of the gap beyond which a head is in the circuit."""


def map_of(values: list[list[float]]) -> Scores:
    x = torch.tensor(values)
    return Scores(x, [[str(i) for i in range(n)] for n in x.shape], ("layer", "head"))


def test_overlap_counts_parts_of_all_roles_once() -> None:
    first = {"mover": [(9, 6), (9, 9)], "inhibition": [(7, 3), (9, 6)], "induction": [(5, 5)]}
    second = {"mover": [(9, 6)], "inhibition": [(8, 0)], "previous": []}
    found = circuit_overlap(first, second, 20)
    assert found.overall == 1 / 5
    assert found.roles == {"mover": 1 / 2, "inhibition": 0.0}
    assert found.shared == ((9, 6),)
    assert circuit_overlap([(9, 6), (9, 9), (7, 3), (5, 5)], [(9, 6), (8, 0)]).overall == 1 / 5
    assert found.chance == chance_overlap(4, 2, 20)


def test_chance_is_what_random_sets_share() -> None:
    rng = random.Random(0)
    draws = [circuit_overlap([(i,) for i in rng.sample(range(9), 4)],
                             [(i,) for i in rng.sample(range(9), 3)]).overall
             for _ in range(4000)]  # fmt: skip
    assert sum(draws) / 4000 == pytest.approx(chance_overlap(4, 3, 9), abs=0.01)


def test_ranks_are_compared_where_both_maps_know() -> None:
    nan = float("nan")
    a, b = map_of([[1, 2, nan], [4, 5, 6]]), map_of([[1, 8, 3], [nan, 9, 100]])
    assert rank_correlation(a, b) == pytest.approx(1.0)
    assert rank_correlation(map_of([[1, 2, 3, 5]]), map_of([[9, 4, 3, 2]])) == pytest.approx(-1)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="got two empty ones"):
        circuit_overlap([], {})
    with pytest.raises(InputError, match="at most the network's 3 parts and not none, got 4 and 1"):
        chance_overlap(4, 1, 3)
    with pytest.raises(InputError, match="maps must be of the same parts"):
        rank_correlation(map_of([[1, 2]]), map_of([[1], [2]]))
    with pytest.raises(InputError, match="two maps that vary, got 2 entries"):
        rank_correlation(map_of([[1, 1]]), map_of([[1, 2]]))


def discovered(model: Model, cue: Literal["A", "B"]) -> dict[str, list[tuple[int, ...]]]:
    """Find movers by what reaches the logits, and then pointers by what reaches their queries."""
    trial = _shared_circuit.task(cue).on(model)
    to_logits = PathPatch()(model, trial)
    movers = [i for i in to_logits.ranked() if to_logits.values[i] > EDGE]
    queries = [Part(f"q.{layer}", head=head) for layer, head in movers]
    to_movers = PathPatch(receivers=queries)(model, trial)
    return {
        "mover": movers,
        "pointer": [i for i in to_movers.ranked() if to_movers.values[i] > EDGE],
    }


@pytest.mark.paper("circuit-component-reuse-across")
def test_path_patching_finds_both_circuits_and_what_they_share(evidence: Evidence) -> None:
    model = shared()
    found = {cue: discovered(model, cue) for cue in ("A", "B")}
    for cue, circuit in found.items():
        planted, own = {*MOVERS, *POINTERS[cue]}, {*circuit["mover"], *circuit["pointer"]}
        precision, recall = len(planted & own) / len(own), len(planted & own) / len(planted)
        evidence(f"task {cue}: precision of the heads found", measured=precision, at_least=1)
        evidence(f"task {cue}: recall", measured=recall, at_least=1)
    overlap = circuit_overlap(found["A"], found["B"], 8)
    for what, value, planted_overlap in (
        ("all heads", overlap.overall, 3 / 5),
        ("movers", overlap.roles["mover"], 1),
        ("pointers", overlap.roles["pointer"], 1 / 3),
    ):
        evidence(f"overlap of {what}", measured=value, equals=planted_overlap, tolerance=1e-9)


def accuracy(model: Model, heads: list[tuple[int, int]], key: int) -> float:
    trial = _shared_circuit.task("B").on(model)
    edits = set_attention(model, trial.clean, heads, [[key]] * len(trial)) if heads else []
    logits = model.run(trial.clean, edits=edits, logits=True).logits
    return float((trial.metric(logits[:, -1:]) > 0).float().mean())


@pytest.mark.paper("circuit-component-reuse-across")
def test_forcing_the_shared_heads_repairs_the_other_task(evidence: Evidence) -> None:
    model = shared(deaf=True)
    evidence("task B, no head reads its cue: accuracy",
             measured=accuracy(model, [], 1), at_most=0.55)  # fmt: skip
    evidence("movers forced to the right token", measured=accuracy(model, MOVERS, 1), at_least=0.95)
    evidence("movers forced to the wrong one", measured=accuracy(model, MOVERS, 0), at_most=0.05)
    evidence("other heads forced to the right one",
             measured=accuracy(model, OTHERS[1:], 1), at_most=0.55)  # fmt: skip


@pytest.mark.paper("circuit-component-reuse-across")
def test_forced_rows_sum_to_one_and_only_what_follows_changes(
    smollm2: Model, evidence: Evidence
) -> None:
    trial = _ioi.pairs(2).on(smollm2)
    heads, keys = [(23, 0), (23, 7), (25, 2)], [[2, 4], [-1, 0, 9]]
    edits = set_attention(smollm2, trial.clean, heads, keys)
    sites = ["resid_pre.23", "attn_probs.23", "attn_probs.25", "resid_post.29"]
    bare, forced = (trial.record("clean", sites, own) for own in ([], edits))
    rows = torch.stack([forced[f"attn_probs.{layer}"][:, head, -1] for layer, head in heads])
    off = (rows.sum(-1) - 1).abs().max()
    evidence("forced rows, largest error of their sum", measured=off, at_most=1e-6)
    expected = torch.zeros_like(rows[0])
    expected[0, [2, 4]], expected[1, [0, 9, -1]] = 1 / 2, 1 / 3
    torch.testing.assert_close(rows, expected.expand_as(rows))
    before = (forced["resid_pre.23"] - bare["resid_pre.23"]).abs().max()
    evidence("change before the forced block", measured=before, at_most=0)
    after = (forced["resid_post.29"] - bare["resid_post.29"]).abs().amax(-1)
    evidence("change at earlier tokens", measured=after[:, :-1].max(), at_most=1e-2)
    evidence("change at the forced token", measured=after[:, -1].min(), at_least=1)
    kept = [h for h in range(9) if h not in (0, 7)]
    same = (forced["attn_probs.23"] - bare["attn_probs.23"])[:, kept].abs().max()
    evidence("change of the block's other heads", measured=same, at_most=1e-6)


@pytest.mark.paper("circuit-component-reuse-across")
def test_forced_name_movers_decide_whom_smollm2_names(smollm2: Model, evidence: Evidence) -> None:
    """Movers that look at the other name write it; random heads that are forced change little."""
    trial, rng = _ioi.pairs(4).on(smollm2), random.Random(0)
    movers, lead = head_classes(trial)["name mover"], float(trial.clean_values.mean())

    def forced(heads: list[tuple[int, int]], key: int) -> float:
        edits = set_attention(smollm2, trial.clean, heads, [[key]] * len(trial))
        logits = smollm2.run(trial.clean, edits=edits, logits=True).logits
        return float(trial.metric(logits[:, -1:]).mean())

    evidence("name movers", measured=len(movers), at_least=1)
    gain = forced(movers, 1) - lead  # the sentence begins: When, object, and, subject
    evidence("lead gained, movers forced to the object (logits)", measured=gain, at_least=1)
    lost = 1 - forced(movers, 3) / lead
    evidence("share of the lead lost, forced to the subject", measured=lost, at_least=0.5)
    every = [(layer, head) for layer in range(30) for head in range(9)]
    draws = [1 - forced(rng.sample(every, len(movers)), 3) / lead for _ in range(10)]
    evidence("as many random heads, mean of 10 draws", measured=sum(draws) / 10, at_most=0.25)
