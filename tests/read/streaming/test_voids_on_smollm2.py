"""The claims of the paper on voids, on SmolLM2-135M-Instruct."""

import pytest

from actkit import data
from actkit.model import Model
from actkit.read.streaming.voids import STREAM, Voids, voids_by_phase
from tests._evidence import Evidence

ALPHAS = (0.0, 0.2, 0.5, 0.8)
SHARES = (0.929, 0.655, 0.364, 0.225)


@pytest.mark.paper("void-language-models")
def test_most_of_the_middle_layers_are_void(smollm2: Model, evidence: Evidence) -> None:
    tokens = smollm2.tokenizer(" ".join(data.text(num_samples=12)))["input_ids"][:120]
    found = smollm2.observe([tokens], {STREAM: [Voids(alpha=ALPHAS)]})[STREAM][0].result()
    assert found.num_rows == 119
    for alpha, share, measured in zip(ALPHAS, SHARES, found.active_A, strict=True):
        evidence(f"share of active layers at alpha {alpha}", measured=measured, equals=share,
                 tolerance=0.05)  # fmt: skip
    evidence("alpha 0.8: largest share of tokens for which one of the layers 3 to 18 is active",
             measured=found.active_AL[-1, 3:19].max(), at_most=0.1)  # fmt: skip


@pytest.mark.paper("void-language-models")
def test_phases_are_told_apart(smollm2: Model, evidence: Evidence) -> None:
    prompts = ["Once upon a time there was a small", "The capital of France is"]
    found = voids_by_phase(smollm2, prompts, alpha=0.8, max_new_tokens=16)
    for phase, result in found.items():
        evidence(f"share of active layers at alpha 0.8, tokens {phase} (prompt or generated)",
                 measured=result.active_A[0], equals=0.23, tolerance=0.1)  # fmt: skip
    assert found["generated"].num_rows == 2 * 15
