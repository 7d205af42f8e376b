"""Subspace patching on SmolLM2: facts move along a direction of an MLP that does not move them."""

import pytest
import torch

import actkit as ak
from actkit.model import Model
from actkit.trace import tasks
from actkit.trace.interventions.subspace_patch import das, illusion_test, subspace_patch
from tests._evidence import Evidence

SITE, SUBJECT = "mlp_hidden.6", ak.Where(tokens=-2)


def effects(model: Model, site: str, subject: ak.Where) -> list[float]:
    """Return the mean effects on two pairs of capitals.

    Those of a trained direction, of the parts of it that are seen and not seen, of all units, and
    of a random direction.
    """
    gen, rows = torch.Generator().manual_seed(0), []
    for pair in (0, 2):
        trial = tasks.capitals(4)[[pair]].on(model)
        v_D = das(model, trial, site, subject, steps=30)[0]
        found = illusion_test(model, trial, site, v_D, subject)
        assert found.row is not None
        assert found.null is not None
        chance = torch.randn(len(v_D), generator=gen)
        by_chance = subspace_patch(model, trial, site, chance, subject)
        told = (found.direction, found.row, found.null, found.full, by_chance)
        rows.append([e.effect for e in told])
    means: list[float] = torch.tensor(rows).mean(0).tolist()
    return means


@pytest.mark.slow
@pytest.mark.paper("this-subspace-you-looking")
def test_a_direction_moves_facts_that_the_whole_mlp_does_not(
    smollm2: Model, evidence: Evidence
) -> None:
    """ "The capital of France is" and Germany, Italy and Spain; patched at the country's token.

    The row space of the map back holds 0.37 of the hidden units' dimensions, so the part that is
    seen is not quite dormant: it has at most 0.75 of the effect here, against none in the paper.
    """
    direction, row, null, full, chance_effect = effects(smollm2, SITE, SUBJECT)
    evidence("capitals: effect of the trained direction", measured=direction, at_least=0.3)
    evidence("capitals: effect of all hidden units", measured=full, at_most=0.15)
    evidence("capitals: effect of the part that is seen, of the direction's",
             measured=row / direction, at_most=0.75)  # fmt: skip
    evidence("capitals: size of the effect of the part that is not seen", measured=abs(null),
             at_most=1e-3)  # fmt: skip
    evidence("capitals: size of the effect of a random direction", measured=abs(chance_effect),
             at_most=0.05)  # fmt: skip
