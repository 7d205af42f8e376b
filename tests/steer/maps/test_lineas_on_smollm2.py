"""Maps trained end to end steer the sentiment of SmolLM2 at less cost than those fitted in turn."""

from math import log

import numpy as np
import pytest

from actkit.model import Model
from actkit.steer.maps.linear_act import LinearAcT
from actkit.steer.maps.lineas import LinEAS
from tests._evidence import Evidence
from tests.steer._sentiment import PAIRS, log_odds, prose_loss

STRENGTHS = (0.25, 0.5, 1.0)
COST = log(1.05)
"""Rise of the loss on prose at which methods are compared: 5 % of perplexity."""


@pytest.mark.slow
@pytest.mark.paper("lineas")
def test_more_sentiment_at_equal_perplexity(smollm2: Model, evidence: Evidence) -> None:
    """Both learn from 32 texts of praise and 32 of blame."""
    bare, loss = log_odds(smollm2), prose_loss(smollm2)
    shift: dict[type, float] = {}
    for kind in (LinEAS, LinearAcT):
        steerer = kind().fit(smollm2, PAIRS[:32])
        edits = [steerer.edits(s) for s in STRENGTHS]
        costs = [0.0, *(prose_loss(smollm2, e) - loss for e in edits)]
        shifts = [0.0, *(log_odds(smollm2, e) - bare for e in edits)]
        shift[kind] = float(np.interp(COST, np.maximum.accumulate(costs), shifts))
    evidence("log-odds of praise, trained end to end (nats)", measured=shift[LinEAS], at_least=1.5)
    more = shift[LinEAS] - shift[LinearAcT]
    evidence("the same less that of maps fitted in turn (nats)", measured=more, at_least=0.3)
