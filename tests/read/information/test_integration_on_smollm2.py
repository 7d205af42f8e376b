"""Integrated information of SmolLM2's activations on true and on altered statements.

Shapes: N texts, T tokens, D width.
"""

import pytest
import torch
from torch import Tensor

from actkit import data
from actkit.model import Model
from actkit.read.information.big_phi import mean_big_phi
from actkit.read.information.integration import (
    compare_groups,
    integration,
    principal_units,
    span_scores,
)
from tests._evidence import Evidence

SITE, NUM = "resid_post.15", 20


def statements(model: Model, site: str) -> tuple[list[Tensor], Tensor]:
    """Return what a model makes of true statements and of altered ones in turn, and which are."""
    facts = data.capitals()
    countries = list(dict.fromkeys(fact.subject for fact in facts))[:NUM]
    texts = [
        " ".join(
            f"{f.clean}{f.answer if true else f.wrong}." for f in facts if f.subject == country
        )
        for country in countries
        for true in (True, False)
    ]
    recording = model.run(texts, record=site)
    rows = recording.rows
    kept_NT = rows.valid & (rows.position > 0)  # the first token's activation is massive
    sequences = [acts_TD[kept_T] for acts_TD, kept_T in zip(recording[site], kept_NT, strict=True)]
    return sequences, torch.arange(2 * NUM) % 2 == 0


@pytest.mark.slow
@pytest.mark.paper("can-consciousness-be-observed")
def test_integration_does_not_tell_true_from_altered_statements(
    smollm2: Model, evidence: Evidence
) -> None:
    """The null is a result here: the test holds the p-values' range, not their significance."""
    sequences, labels_N = statements(smollm2, SITE)
    units = principal_units(sequences, 4)
    measures = {
        "stochastic interaction": torch.tensor([integration(u).phi for u in units]),
        "big phi of 2 binary units": torch.tensor([mean_big_phi(u[:, :2]) for u in units]),
    }
    for name, scores_N in measures.items():
        found = compare_groups(scores_N, labels_N)
        evidence(f"AUC of true against altered statements by {name}", measured=found.auc,
                 at_least=0, at_most=1)  # fmt: skip
        evidence(f"its permutation p-value, {name}", measured=found.p_value,
                 at_least=0, at_most=1)  # fmt: skip

    pairs = [i // 2 for i in range(2 * NUM)]
    spans = compare_groups(span_scores(sequences, labels_N, pairs), labels_N)
    evidence("AUC of true against altered statements by span representations", measured=spans.auc,
             at_least=0.75)  # fmt: skip
