"""Circuits of SmolLM2 on indirect objects: against random heads, and against another task."""

import random

import pytest

import actkit as ak
from actkit.model import Model
from actkit.trace import Scores
from actkit.trace._ablations import means, removal
from actkit.trace._parts import as_parts
from actkit.trace.circuits.circuit_overlap import circuit_overlap
from actkit.trace.nodes.patch import Patch
from tests._evidence import Evidence
from tests.trace import _ioi


@pytest.fixture(scope="module")
def ioi_map(smollm2: Model) -> Scores:
    """Score all heads by patching, on two of the 56 pairs."""
    return Patch("heads")(smollm2, _ioi.pairs(2))


@pytest.mark.slow
@pytest.mark.paper("interpretability-wild-circuit-indirect")
def test_the_heads_that_patching_ranks_carry_the_answer(
    smollm2: Model, ioi_map: Scores, evidence: Evidence
) -> None:
    """Heads are ranked on two of the 56 pairs, and knocked out by their mean over all ABC ones."""
    trial = _ioi.pairs().on(smollm2)
    lead = trial.clean_values.mean()
    evidence("prompts of 56 answered rightly", measured=trial.right.sum(), at_least=56)
    # 5.08 with other names, a place and a thing of another choice
    evidence("mean lead of the object (logits)", measured=lead, equals=5.08, tolerance=0.5)
    heads, rng = as_parts("heads"), random.Random(0)
    every = [(layer, head) for layer in range(30) for head in range(9)]
    sets = [ioi_map.ranked()[:10]]
    sets += [[*rng.sample(every, 10)] for _ in range(5)]
    values = means(trial, [site.name for site in heads.sites(smollm2)])
    kept = trial.sweep([removal(smollm2, heads, nodes, values) for nodes in sets], "clean")
    lost = 1 - kept.mean(-1) / lead
    evidence("share of the lead lost with the 10 best heads", measured=lost[0], at_least=0.5)
    evidence("with 10 random heads, mean of 5 draws", measured=lost[1:].mean(), at_most=0.15)


@pytest.mark.slow
@pytest.mark.paper("circuit-component-reuse-across")
def test_two_tasks_share_more_heads_than_chance(
    smollm2: Model, ioi_map: Scores, evidence: Evidence
) -> None:
    """The paper's 78% is of circuits found by hand in GPT-2 medium; here it is the best heads."""
    objects = Patch("heads")(smollm2, ak.trace.tasks.colored_objects(2))
    found = circuit_overlap(ioi_map.ranked()[:20], objects.ranked()[:20], 270)
    assert found.chance is not None
    evidence("20 best heads of both tasks: overlap", measured=found.overall, at_least=0.1)
    ratio = found.overall / found.chance
    evidence("overlap over that of random heads", measured=ratio, at_least=2)
