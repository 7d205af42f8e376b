"""Setpoints over the layers of SmolLM2: feedback against one push, and against no feedback."""

import pytest

import actkit as ak
from actkit.model import Model
from actkit.steer.controllers.lqr import LAST, LQR
from tests._evidence import Evidence

PROMPTS = [
    "The weather report for tomorrow says that",
    "My neighbour told me about the museum, which",
    "In the evening we went to the restaurant and",
    "Yesterday I finished the book. I thought it",
    "The new phone that my sister bought is",
    "He described the concert as",
    "Our trip to the coast was",
    "After the meeting the manager said",
]
LATE = slice(10, 29)


@pytest.mark.slow
@pytest.mark.paper("local-linearity-llms-enables")
def test_feedback_tracks_the_setpoints(smollm2: Model, evidence: Evidence) -> None:
    """Sentiment, at the last token of prompts that it was not fitted on; layers 10 to 28."""
    lqr = LQR().fit(smollm2, ak.data.sentiment()[:24])
    closed = lqr.tracking(smollm2, PROMPTS, lqr.edits(1.0))
    effort = float(closed.effort_B.mean())
    single = []
    for layer in (5, 10, 12, 15):
        push = lqr.directions_[layer].float() * effort**0.5
        edit = ak.add(f"resid_post.{layer}", push, where=LAST)
        found = lqr.tracking(smollm2, PROMPTS, [edit])
        assert float(found.effort_B.mean()) == pytest.approx(effort, rel=1e-3)
        single.append(found.rms(LATE))
    ratio = min(single) / closed.rms(LATE)
    what = "error of one push of the same |u|^2 at the best of 4 layers / that of feedback"
    evidence(what, measured=ratio, at_least=2)

    lqr.feedback = False
    opened = lqr.tracking(smollm2, PROMPTS, lqr.edits(1.0))
    scale = (effort / float(opened.effort_B.mean())) ** 0.5
    louder = lqr.tracking(smollm2, PROMPTS, lqr.edits(scale))
    best = min(opened.rms(LATE), louder.rms(LATE))
    what = "error without feedback, as it is or with the same |u|^2 / with feedback"
    evidence(what, measured=best / closed.rms(LATE), at_least=1.2)
