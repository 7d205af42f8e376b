"""Transport of single units steers the sentiment of SmolLM2 by degrees."""

from itertools import pairwise

import pytest

from actkit.model import Model
from actkit.steer.maps.linear_act import LinearAcT
from tests._evidence import Evidence
from tests.steer._sentiment import PAIRS, log_odds, prose_loss

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.mark.slow
@pytest.mark.paper("controlling-language-diffusion-models")
def test_sentiment_follows_the_strength(smollm2: Model, evidence: Evidence) -> None:
    act = LinearAcT().fit(smollm2, PAIRS[:80])
    odds = [log_odds(smollm2, act.edits(s)) for s in STRENGTHS]
    least = min(late - early for early, late in pairwise(odds))
    evidence(
        "least rise of the log-odds of praise over a step of .25 (nats)",
        measured=least,
        at_least=0.1,
    )
    loss = prose_loss(smollm2, act.edits(0.25)) - prose_loss(smollm2)
    evidence("rise of the loss on prose at .25 (nats)", measured=loss, at_most=0.15)
